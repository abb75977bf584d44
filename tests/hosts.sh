#!/bin/bash
# Two hosts in one machine, host1 (10.77.0.1) and host2 (10.77.0.2): namespaces with a network and a name of their own, joined by a
# cable. Runs a command on host1, where FOLDER/agent is what a launcher may use instead of ssh.
#   unshare --net --mount bash tests/hosts.sh FOLDER COMMAND...
# The outer namespaces keep the machine's own network out of it; everything vanishes with the command.
set -e
folder=$1; shift
outside=$(readlink /proc/$$/ns/net)
pids=()
trap 'kill "${pids[@]}"' EXIT
for host in 1 2; do
  unshare --net --uts sleep infinity & pids+=($!)
  while [ "$(readlink /proc/$!/ns/net)" = "$outside" ]; do sleep 0.05; done
done
on() { nsenter --target "${pids[$1 - 1]}" --net --uts "${@:2}"; }

ip link add cable netns "${pids[0]}" type veth peer name cable netns "${pids[1]}"
for host in 1 2; do
  on $host hostname host$host
  on $host ip address add 10.77.0.$host/24 dev cable
  on $host ip link set cable up
  on $host ip link set lo up
done
cat >"$folder/agent" <<END
#!/bin/bash
while [ "\${1#-}" != "\$1" ]; do shift; done  # options of ssh
case \$1 in 10.77.0.1) host=${pids[0]};; 10.77.0.2) host=${pids[1]};; esac
shift
exec nsenter --target \$host --net --uts bash -c "\$*"
END
chmod +x "$folder/agent"
on 1 "$@"
