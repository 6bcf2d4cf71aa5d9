#!/bin/sh
# Mender's update module for builds of fleetc: copy it to /usr/share/mender/modules/v3/fleetc on the device.
# Mender calls it with a state and a folder; a build is kept in FLEETC_FOLDER, and `current` in it is the one in use.
set -eu

state=$1 files=$2/files
folder=${FLEETC_FOLDER:-/var/lib/fleetc}
archive=$files/fleetc-build.tar

case $state in
  SupportsRollback) echo Yes ;;
  NeedsArtifactReboot) echo No ;;
  ArtifactInstall)
    mkdir -p "$folder"
    tar -xOf "$archive" install.sh >"$folder/install.sh"
    # Mender has compared the archive with the artifact's manifest, and that with its signature
    sh "$folder/install.sh" "$archive" "$folder" "$(sha256sum "$archive" | cut -c 1-64)"
    ;;
  ArtifactRollback) [ ! -s "$folder/previous" ] || sh "$folder/install.sh" --back "$folder" ;;
  ArtifactCommit) rm -f "$folder/previous" ;;
esac
