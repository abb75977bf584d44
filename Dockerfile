# docker build -t genfl_mpi . && docker run --rm -v "$PWD/results:/work/results" genfl_mpi mpirun -n 4 genfl_mpi
FROM python:3.11-slim
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[mpich,tables,tensorboard]" && useradd --create-home user \
    && mkdir -p /work/results && chown -R user /work
USER user
WORKDIR /work
CMD ["genfl_mpi", "--help"]
