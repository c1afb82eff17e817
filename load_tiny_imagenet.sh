#!/usr/bin/env bash
# Downloads Tiny ImageNet (237 MiB) and arranges it as `--dataset TinyImageNet` and other tools read it:
# FOLDER/tiny-imagenet-200/{train,val}/<class>/*.JPEG.
#
#   ./load_tiny_imagenet.sh [FOLDER]                    FOLDER: data/datasets
#   TINY_IMAGENET_URL=... TINY_IMAGENET_MD5=... ./load_tiny_imagenet.sh
#
# Given again it does nothing, or goes on with a download that was cut off. Another URL is checked by unzip alone, unless
# its MD5 is given too.
set -euo pipefail

# A word such as --help is no folder: mkdir, curl and rm would take it for an option of theirs.
if [[ ${1:-} == -* ]]; then
    sed -n '1d; /^set/q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
name=tiny-imagenet-200
known_url=http://cs231n.stanford.edu/$name.zip
url=${TINY_IMAGENET_URL:-$known_url}
md5=${TINY_IMAGENET_MD5:-}
if [[ -z $md5 && $url == "$known_url" ]]; then
    md5=90528d7ca1a48142e341f4ef8d21d0de
fi
# Beside this file, as main.py's default is, wherever it is called from.
folder=${1:-$(dirname "${BASH_SOURCE[0]}")/data/datasets}
archive=$folder/$name.zip.part

fail() {
    echo "error: $*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null; }

whole() { unzip -tqq "$archive" >/dev/null 2>&1; }

# Goes on where an earlier download ended; servers that cannot (curl's 33) are asked for all of it.
download() {
    if have curl; then
        local code=0
        curl --fail --location --retry 3 --continue-at - --output "$archive" "$url" || code=$?
        if [[ $code == 33 ]]; then
            rm -f "$archive" && curl --fail --location --retry 3 --output "$archive" "$url"
        else
            return "$code"
        fi
    elif have wget; then
        wget --continue --tries 3 --output-document "$archive" "$url"
    else
        fail "neither curl nor wget is there to download $url"
    fi
}

md5_of() {
    if have md5sum; then md5sum <"$1" | cut -d' ' -f1; else md5 -q "$1"; fi
}

# A wrong archive is removed: a later run would only go on with it.
refuse() {
    rm -f "$archive"
    fail "the archive from $url $*; it was removed"
}

verify() {
    whole || refuse "is damaged"
    [[ -z $md5 || $(md5_of "$archive") == "$md5" ]] || refuse "is not the one with MD5 $md5"
    local members strange
    members=$(unzip -Z1 "$archive")
    strange=$(grep -vE "^$name/" <<<"$members" || grep -E '(^|/)\.\.(/|$)' <<<"$members" || true)
    [[ -z $strange ]] || refuse "would write outside $name: ${strange%%$'\n'*}"
}

# Training images out of their folders `images`, and validation images into folders of their classes.
arrange() {
    local class image
    for class in train/*/; do
        class=${class%/}
        mv "$class"/images/* "$class"/
        rmdir "$class/images"
        rm -f "$class"/*_boxes.txt
    done
    while read -r image class _ || [[ -n $image ]]; do
        [[ -n $class && $class != .* && $image$class != */* && -d train/$class && -f val/images/$image ]] ||
            fail "val_annotations.txt names '$image' of class '$class', which is not there"
        [[ -d val/$class ]] || mkdir "val/$class"
        mv "val/images/$image" "val/$class/$image"
    done <val/val_annotations.txt
    rmdir val/images || fail "some images of val have no annotation"
    rm val/val_annotations.txt
}

if [[ -d $folder/$name ]]; then
    echo "$folder/$name is there: nothing to do"
    exit 0
fi
have unzip || fail "unzip is not installed"
mkdir -p "$folder"
if ! whole; then
    echo "downloading $url"
    download || fail "the download of $url did not end; run this again to go on with it"
fi
verify
echo "unpacking"
find "$folder" -maxdepth 1 -name ".$name.??????" -mmin +60 -exec rm -rf {} + # of runs that were killed
scratch=$(mktemp -d "$folder/.$name.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
unzip -qq "$archive" -d "$scratch"
[[ -z $(find "$scratch" -type l) ]] || refuse "holds links"
(cd "$scratch/$name" && arrange)
# The bash of macOS, 3.2, goes on after a subshell that failed; `|| exit` would switch -e off inside it.
[[ $? == 0 ]] || exit 1
mv "$scratch/$name" "$folder/$name" # only now, whole: this name is what says that all is done
rm "$archive"
echo "$folder/$name: $(find "$folder/$name/train" -name '*.JPEG' | wc -l) images for training," \
    "$(find "$folder/$name/val" -name '*.JPEG' | wc -l) for testing"
