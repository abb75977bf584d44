# docker build -t genfl_mpi . && docker run --rm -v "$PWD/results:/home/user/results" genfl_mpi mpirun -n 4 genfl_mpi
FROM python:3.11-slim
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[mpich,tables,tensorboard]" && useradd --create-home user \
    && mkdir -p /home/user/results && chown -R user /home/user
USER user
WORKDIR /home/user
CMD ["genfl_mpi", "--help"]
