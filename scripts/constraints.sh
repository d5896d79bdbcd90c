#!/bin/sh
# constraints.sh VENV: writes what VENV has into constraints.txt, as the versions that passed the tests with its Python.
# Lines of other Pythons stay as they are. `make constraints` gives it the newest ones, after the tests.
set -eu
version=$("$1/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
    grep '^#' constraints.txt
    {
        grep -v -e '^#' -e "python_version == \"$version\"" constraints.txt || true
        "$1/bin/python" -m pip --disable-pip-version-check freeze | grep '==' | sed "s/\$/ ; python_version == \"$version\"/"
    } | LC_ALL=C sort -f
} >"$new"
cat "$new" >constraints.txt
echo "constraints.txt: $(grep -c "\"$version\"" constraints.txt) packages of Python $version"
