"""SMPL files, published checkpoints, exports: python jobs/convert.py smpl --input x --output y"""

from rayhmr.convert import main

if __name__ == "__main__":
    main()
