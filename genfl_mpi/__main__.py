import sys

from genfl_mpi.cli import main

sys.exit(main())
