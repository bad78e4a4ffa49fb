"""The license of a package, as its SPDX identifier, from its license file or its metadata.

The text is compared with phrases, so a result is a hint for the user of the data, not advice.
"""

import json
import re
from pathlib import PurePath

# Names of files that say the license of the folder that they are in, best first. In upper case,
# without a suffix.
LICENSE_FILES = ('LICENSE', 'LICENCE', 'COPYING', 'UNLICENSE', 'COPYRIGHT', 'MIT-LICENSE')
METADATA_FILES = ('package.json', 'composer.json', 'METADATA', 'PKG-INFO')
MAX_BYTES = 200_000
# Phrases that a license contains, all of them, in lower case and with single spaces. The first
# entry that fits counts.
_PHRASES = (
    ('AGPL-3.0', ('gnu affero general public license', 'version 3')),
    ('LGPL-2.1', ('gnu lesser general public license', 'version 2.1')),
    ('LGPL-3.0', ('gnu lesser general public license', 'version 3')),
    ('GPL-2.0-with-classpath-exception', ('gnu general public license', 'version 2', 'classpath')),
    ('GPL-2.0', ('gnu general public license', 'version 2')),
    ('GPL-3.0', ('gnu general public license', 'version 3')),
    ('MPL-2.0', ('mozilla public license', '2.0')),
    ('EPL-2.0', ('eclipse public license', '2.0')),
    ('Apache-2.0', ('apache license', 'version 2.0')),
    ('PSF-2.0', ('python software foundation license',)),
    ('MIT', ('permission is hereby granted, free of charge',)),
    ('ISC', ('permission to use, copy, modify, and', 'with or without fee is hereby granted')),
    (
        'BSD-3-Clause',
        ('redistribution and use in source and binary forms', 'endorse or promote products'),
    ),
    ('BSD-2-Clause', ('redistribution and use in source and binary forms',)),
    ('Unlicense', ('this is free and unencumbered software released into the public domain',)),
    ('CC0-1.0', ('cc0 1.0',)),
    ('Apache-2.0', ('apache license, version 2.0',)),
)
_FIELD = re.compile(
    r'^(?:License-Expression: *|License: *|Classifier: License :: OSI Approved :: )(\S[^\n]*)$',
    re.MULTILINE,
)


def is_license_file(name: str) -> bool:
    """Returns whether a file may say the license of its folder.

    Args:
      name: name of the file without its folder.
    """
    stem = PurePath(name).stem.upper() if name.count('.') else name.upper()
    return name in METADATA_FILES or name == 'copyright' or stem in LICENSE_FILES


def rank_license_file(name: str) -> int:
    """Returns the rank of a license file: metadata, which name the license, come first."""
    return 0 if name in METADATA_FILES else 1


def identify_license(name: str, text: str) -> str:
    """Returns the SPDX identifier of a license; '' if it is not recognized.

    Args:
      name: name of the file, without its folder.
      text: its content.
    """
    if name.endswith('.json'):
        return _read_json_license(text)
    if name in METADATA_FILES or (name == 'copyright' and _FIELD.search(text)):
        found = _FIELD.search(text)
        value = found.group(1).strip() if found else ''
        return '' if value.upper() == 'UNKNOWN' or len(value) > 60 else value
    words = ' '.join(text.lower().split())
    for license_id, phrases in _PHRASES:
        if all(phrase in words for phrase in phrases):
            return license_id
    return ''


def _read_json_license(text: str) -> str:
    """Returns the license in a package.json or composer.json."""
    try:
        value = json.loads(text).get('license', '')
    except (ValueError, AttributeError):
        return ''
    if isinstance(value, dict):  # as npm packages had it before 2014
        value = value.get('type', '')
    if isinstance(value, list):
        value = ' OR '.join(each for each in value if isinstance(each, str))
    return value if isinstance(value, str) else ''
