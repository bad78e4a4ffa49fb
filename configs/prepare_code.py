r"""(documentation, function) pairs of source code in six languages, for launch/prepare.py.

The path is a folder with source trees, one folder a package or repository, or with archives of them
(.zip, .tar.gz and others). docs/data.md says where to get some.

Example:
  python launch/prepare.py --config configs/prepare_code.py --output data/code_pairs \
      --config.sources.code.path=my/packages
"""

from ml_collections import ConfigDict

from configs import prepare_text


def get_config() -> ConfigDict:
    c = prepare_text.get_config()
    c.sources = ConfigDict()
    c.sources.code = ConfigDict()
    c.sources.code.reader = 'sources'
    c.sources.code.path = 'data/packages'
    # Languages to read: go, java, javascript, php, python, ruby; (): all.
    c.sources.code.languages = ()
    # Number of leading folders of a path that are the name of its package. Packages are held out
    # as a whole.
    c.sources.code.package_folders = 1
    c.sources.code.max_file_mb = 1.0  # larger files are generated and are left out
    c.sources.code.pairs = 'functions'
    # Which functions are found: 'codesearchnet', those of its parsers; 'all', also others, such as
    # the methods of JavaScript classes: three times as many in JavaScript and Ruby.
    c.sources.code.scope = 'codesearchnet'

    c.duplicates.near = True
    c.output.holdout = 0.05
    c.output.fields = ('language', 'license', 'package', 'path', 'function')
    c.output.max_bad_share = 0.02  # files that are not UTF-8
    return c
