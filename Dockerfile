# docker build -t genfl_mpi .
# mkdir -p results
# docker run --rm --user "$(id -u)" --shm-size=8g -v "$PWD/results:/home/user/results" genfl_mpi mpirun -n 4 genfl_mpi
FROM python:3.11-slim
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[mpich,tables,tensorboard]" && ldconfig && useradd --create-home user \
    && mkdir -p /home/user/results && chown -R user /home/user && chmod 777 /home/user /home/user/results
# Any --user may write its caches and results here.
ENV HOME=/home/user
USER user
WORKDIR /home/user
CMD ["genfl_mpi", "--help"]
