#!/bin/sh
# Installs a build on a board without Python: verifies, runs, and switches the link `current` in one step.
#
#   sh install.sh BUILD.tar FOLDER SHA256
#
# SHA256 is the digest of BUILD.tar, from whom you trust. The build before stays in FOLDER; `install.sh --back FOLDER`
# goes back to it. Needs tar, sha256sum, ln and mv with -T, as BusyBox and GNU have them.
set -eu

fail() { echo "install.sh: $1" >&2; exit 1; }

switch() { # folder, version
  ln -sfn "versions/$2" "$1/.current.draft"
  mv -T "$1/.current.draft" "$1/current"
  sync
}

if [ "${1-}" = --back ]; then
  folder=${2:?}
  [ -s "$folder/previous" ] || fail "there is no build before this one"
  switch "$folder" "$(cat "$folder/previous")"
  rm -f "$folder/previous"
  exit 0
fi

[ $# = 3 ] || fail "usage: install.sh BUILD.tar FOLDER SHA256"
archive=$1 folder=$2 digest=$3
echo "$digest  $archive" | sha256sum -c >/dev/null 2>&1 || fail "tampered: $archive is not $digest"

mkdir -p "$folder/versions"
draft="$folder/versions/.draft"
rm -rf "$draft"
mkdir "$draft"
tar -xf "$archive" -C "$draft" || { rm -rf "$draft"; fail "it cannot be unpacked: is the disk full?"; }
(cd "$draft" && sha256sum -c SHA256SUMS >/dev/null 2>&1) || { rm -rf "$draft"; fail "tampered: a file is not what SHA256SUMS names"; }

if [ -x "$draft/artifact/run" ]; then
  inputs='' outputs=''
  for file in "$draft"/health/in-*.npy; do inputs="$inputs $file"; done
  for file in "$draft"/health/out-*.npy; do outputs="$outputs $draft/$(basename "$file")"; done
  # shellcheck disable=SC2086  # lists of names without blanks
  "$draft/artifact/run" $inputs $outputs >/dev/null || { rm -rf "$draft"; fail "the health run failed"; }
  for file in "$draft"/health/out-*.npy; do
    result="$draft/$(basename "$file")"
    [ "$(wc -c <"$result")" = "$(wc -c <"$file")" ] || { rm -rf "$draft"; fail "the health run gives another shape"; }
    rm -f "$result"
  done
fi

version=$(sha256sum "$draft/artifact/manifest.json" | cut -c 1-64)
before=''
[ ! -L "$folder/current" ] || before=$(basename "$(readlink "$folder/current")")
if [ "$before" != "$version" ]; then
  rm -rf "$folder/versions/$version"
  sync
  mv -T "$draft" "$folder/versions/$version"
  [ -z "$before" ] || echo "$before" >"$folder/previous"
  switch "$folder" "$version"
fi
rm -rf "$draft"
for path in "$folder"/versions/*; do
  name=$(basename "$path")
  [ "$name" = "$version" ] || [ "$name" = "$before" ] || rm -rf "$path"
done
echo "$version is in use"
