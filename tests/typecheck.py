"""The checker behind the import hook in conftest.py: beartype, with an int welcome where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
