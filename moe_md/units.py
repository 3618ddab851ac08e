"""Units: eV, Å, amu, so that time is in Å sqrt(amu / eV), about 10.18 fs.

The constants are ASE's (CODATA 2014).
"""

import ase.units

fs = float(ase.units.fs)  # one femtosecond
ps = 1000.0 * fs
kB = float(ase.units.kB)  # eV / K
GPa = float(ase.units.GPa)  # eV / Å^3
