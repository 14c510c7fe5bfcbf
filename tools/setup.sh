# Sourced by the tools: gets what is missing, and installs the package into a library of its own.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
[ -z "${CARGO_TARGET_DIR:-}" ] || export CARGO_TARGET_DIR=$target   # absolute, as R CMD INSTALL changes directory
library=$target/library
# cargo and what it installs, also for a shell that has not read the profile that rustup writes
PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# need_r [R package ...]: R, a compiler, cargo and these R packages, installed where that can be done.
need_r() {
  local debian=(r-base-core gcc libc6-dev make cmake procps) package missing
  for package in "$@"; do debian+=("r-cran-$(tr '[:upper:]' '[:lower:]' <<<"$package")"); done
  [[ " $* " != *" rmarkdown "* ]] || debian+=(pandoc)

  # Asking dpkg takes milliseconds; what it does not know of may still be there by other means (R built from source).
  if ! debian_has "${debian[@]}"; then
    missing=$(not_found "$@")
    if [ -n "$missing" ]; then
      command -v apt-get >/dev/null ||
        die "Missing: ${missing//$'\n'/, }. Please install these (R in version 4.1 or later) and run this again."
      debian_install "${debian[@]}"
      missing=$(not_found "$@")
      [ -z "$missing" ] || die "Still missing: ${missing//$'\n'/, }. Is the R that runs here ($(command -v R)) Debian's?"
    fi
  fi
  command -v cargo >/dev/null ||
    die "cargo is missing. Get Rust with rustup: https://rustup.rs, or from your system if that has the version that Cargo.toml names."
}

debian_has() {
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>/dev/null) || return 1
  ! grep -qvx installed <<<"$installed"
}

debian_install() {
  local package missing=() root=()
  for package in "$@"; do debian_has "$package" || missing+=("$package"); done
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "Please have an administrator install: ${missing[*]}"
    root=(sudo)
  fi
  say "Installing ${missing[*]}"
  { "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${missing[@]}"; } >&2 ||
    die "apt-get could not install ${missing[*]}"
}

# Installs R packages, and a browser that tests can drive, if that can be done. Tests that lack them are skipped.
want_r() { (need_r "$@") || say "Some tests will be skipped."; }

want_browser() {
  command -v chromium >/dev/null && command -v chromedriver >/dev/null && return
  ! command -v apt-get >/dev/null || (debian_install chromium chromium-driver) || say "The tests with a browser will be skipped."
}

# Servers of SSH and Slurm, to launch daemons with, and what is used to call a service, make networks and certificates.
want_launchers() {
  local tool missing=()
  for tool in sshd ssh slurmctld slurmd sbatch munged curl ip openssl; do
    PATH=$PATH:/usr/sbin:/sbin command -v $tool >/dev/null || missing+=("$tool")
  done
  [ ${#missing[@]} = 0 ] && return
  ! command -v apt-get >/dev/null || (debian_install openssh-server openssh-client slurm-wlm munge curl iproute2 openssl) ||
    say "The tests that need ${missing[*]} will be skipped."
}

# One line for each thing that really is not there.
not_found() {
  local tool
  for tool in R cc make cmake flock timeout; do command -v $tool >/dev/null || echo $tool; done
  [ $# = 0 ] || ! command -v R >/dev/null ||
    Rscript --vanilla -e 'for (p in commandArgs(TRUE)) if (!requireNamespace(p, quietly = TRUE)) cat(p, "\n", sep = "")' "$@" 2>/dev/null
}

# Each Rust test has a process of its own, as forks and signals are part of what is tested: so nextest, not cargo test.
need_nextest() {
  cargo nextest --version >/dev/null 2>&1 && return
  say "Installing cargo-nextest, which takes some minutes, once"
  cargo install cargo-nextest --locked >&2 || die "cargo-nextest could not be installed; see https://nexte.st for other ways"
}

# Installs the package into $library and makes R find it there. Nothing is done if its sources are those of last time.
install_package() {
  local log=$target/install.log stamp=$library/mirai.sources sources
  mkdir -p "$library"
  export R_LIBS=$library${R_LIBS:+:$R_LIBS}
  exec 9>"$target/install.lock"
  flock 9   # two tools at once: the second waits, and then finds the work done
  sources=$(sources)
  if [ "$sources" != "$(cat "$stamp" 2>/dev/null)" ]; then
    say "Building and installing mirai into $library"
    rm -f "$stamp"
    # The lock above takes the place of R's own, which would outlive an interrupted installation.
    R CMD INSTALL --no-multiarch --no-lock --library="$library" "$top" >"$log" 2>&1 9>&- ||
      { cat "$log" >&2; die "The installation failed; see above, or $log"; }
    echo "$sources" >"$stamp"
  fi
  exec 9>&-
}

# Checksums of everything that goes into the installed package, and of the R it is for.
sources() {
  R --version | head -n 1
  (
    cd "$top"
    find DESCRIPTION NAMESPACE LICENSE NEWS.md README.md R man inst Cargo.toml Cargo.lock configure src \
      \( -path src/rust/vendor -o -path src/.cargo -o -path src/rust/core/tests -o -path src/rust/bench -o -path src/rust/core/examples \) -prune -o \
      -type f ! -name '*.o' ! -name '*.so' ! -name Makevars -exec cksum {} + 2>/dev/null | LC_ALL=C sort -k 3
  ) || :   # some of these are optional
}
