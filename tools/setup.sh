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

# The least R and the least Rust are stated once each, for R CMD INSTALL and for cargo.
least_r=$(sed -n 's/^\(Depends:\)\{0,1\} *R (>= \([0-9.]*\)).*/\2/p' "$top/DESCRIPTION")
least_rust=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$top/Cargo.toml")

# at_least LEAST VERSION
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# need_r [R package ...]: R, a compiler, cargo and these R packages, installed where that can be done.
need_r() {
  local debian=(r-base-core gcc libc6-dev make cmake procps) package missing
  for package in "$@"; do debian+=("$(r_package "$package")"); done
  [[ " $* " != *" rmarkdown "* ]] || debian+=(pandoc)

  # Asking dpkg takes milliseconds; what it does not know of may still be there by other means (R built from source).
  if ! debian_has "${debian[@]}"; then
    missing=$(not_found "$@")
    if [ -n "$missing" ]; then
      command -v apt-get >/dev/null ||
        die "Missing: ${missing//$'\n'/, }. Please install these (R in version $least_r or later) and run this again."
      debian_install "${debian[@]}"
      missing=$(not_found "$@")
      [ -z "$missing" ] || die "Still missing: ${missing//$'\n'/, }. Is the R that runs here ($(command -v R)) Debian's?"
    fi
  fi
  local version
  version=$(R --version | sed -n '1s/^R version \([0-9.]*\).*/\1/p')
  # R in development has no number there.
  [ -z "$version" ] || at_least "$least_r" "$version" ||
    die "R $version is too old: mirai needs R $least_r or later. This one is $(command -v R)."
  need_rust
}

need_rust() {
  local version rustup="With rustup (https://rustup.rs): rustup update stable."
  if ! command -v cargo >/dev/null && command -v apt-get >/dev/null; then
    version=$(candidates cargo | cut -d' ' -f2)
    [ -z "$version" ] || ! at_least "$least_rust" "$version" || debian_install cargo
  fi
  command -v cargo >/dev/null && command -v rustc >/dev/null ||
    die "cargo or rustc is missing, and Rust $least_rust or later is needed. $rustup"
  version=$(rustc --version | sed -n 's/^rustc \([0-9.]*\).*/\1/p')
  [ -n "$version" ] || die "'rustc --version' fails: $(rustc --version 2>&1 | head -n 1)"
  at_least "$least_rust" "$version" ||
    die "Rust $version is too old: mirai needs Rust $least_rust or later. This one is $(command -v rustc). $rustup"
}

# candidates PACKAGE ...: name and version of those that apt could install.
candidates() {
  [ -n "$(apt-cache policy base-files | grep http)" ] || debian_update   # this machine has no package lists yet
  apt-cache policy "$@" |
    awk '/^[^ ]/ { name = $1; sub(/:.*/, "", name) } $1 == "Candidate:" && $2 != "(none)" { print name, $2 }'
}

r_package() { tr '[:upper:]' '[:lower:]' <<<"r-cran-$1"; }

debian_has() {
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>/dev/null) || return 1
  ! grep -qvx installed <<<"$installed"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

debian_update() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update >&2; }

# Package lists of the last quarter of an hour are new enough.
debian_is_updated() { [ -n "$(find /var/lib/apt/lists/partial -maxdepth 0 -mmin -15 2>/dev/null)" ]; }

debian_install() {
  local package missing=()
  for package in "$@"; do debian_has "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "Please have an administrator install: ${missing[*]}"
  say "Installing ${missing[*]}"
  { { debian_is_updated || debian_update; } &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=600 install --no-install-recommends "${missing[@]}"; } >&2 ||
    die "apt-get could not install ${missing[*]}"
}

# Installs R packages if that can be done. Tests that lack them are skipped. Those that this release of Debian does not have
# are added to $absent: tests of these cannot run here.
absent=()
want_r() {
  local package packages=() available wanted=()
  if command -v apt-get >/dev/null; then
    for package in "$@"; do packages+=("$(r_package "$package")"); done
    available=$(candidates "${packages[@]}")
    for package in "$@"; do
      if grep -q "^$(r_package "$package") " <<<"$available"; then wanted+=("$package"); else absent+=("$package"); fi
    done
  else
    wanted=("$@")
  fi
  [ ${#absent[@]} = 0 ] || say "This release of Debian does not have the R packages: ${absent[*]}"
  (need_r "${wanted[@]}") || lacks "R packages"
}

# lacks WHAT: what could not be installed is an error for tools/test --setup, and otherwise skips tests.
lacks() {
  [ -z "${strict:-}" ] || exit 75
  say "Some tests will be skipped, for want of: $1"
}

# A browser that tests can drive.
want_browser() {
  command -v chromium >/dev/null && command -v chromedriver >/dev/null && return
  ! command -v apt-get >/dev/null || (debian_install chromium chromium-driver) || lacks "a browser"
}

# A terminal whose screen tests can read.
want_terminal() {
  command -v tmux >/dev/null && return
  ! command -v apt-get >/dev/null || (debian_install tmux) || lacks "tmux"
}

# Servers of SSH and Slurm, to launch daemons with, and what is used to call a service, make networks and certificates.
want_launchers() {
  local tool missing=()
  for tool in sshd ssh slurmctld slurmd sbatch munged curl ip openssl; do
    PATH=$PATH:/usr/sbin:/sbin command -v $tool >/dev/null || missing+=("$tool")
  done
  [ ${#missing[@]} = 0 ] && return
  ! command -v apt-get >/dev/null || (debian_install openssh-server openssh-client slurm-wlm munge curl iproute2 openssl) ||
    lacks "${missing[*]}"
}

# What R CMD check --as-cran looks for.
want_check_tools() {
  command -v qpdf >/dev/null && command -v checkbashisms >/dev/null && return
  ! command -v apt-get >/dev/null || (debian_install qpdf devscripts) || lacks "qpdf or checkbashisms"
}

# The formatter of R code, at $air. Another version could lay code out in another way.
air_version=0.12.0
need_air() {
  air=$target/air/bin/air
  [ "$("$air" --version 2>/dev/null)" != "air $air_version" ] || return 0
  command -v pip3 >/dev/null || ! command -v apt-get >/dev/null || debian_install python3-pip
  rm -rf "$target/air"
  pip3 install --quiet --root-user-action=ignore --no-deps --target "$target/air" "air-formatter==$air_version" >&2 ||
    die "air $air_version could not be installed: pip3 install air-formatter==$air_version"
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
  mkdir -p "$library" "$top/target"
  export R_LIBS=$library${R_LIBS:+:$R_LIBS}
  # One lock for all versions of R (tools/on), as all build in src. A second tool waits, and then finds the work done.
  exec 9>"$top/target/install.lock"
  flock 9
  sources=$(sources)
  if [ "$sources" != "$(cat "$stamp" 2>/dev/null)" ]; then
    say "Building and installing mirai into $library"
    rm -f "$stamp" "$top"/src/*.o "$top"/src/*.so   # which may be for another R
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
      \( -path src/rust/vendor -o -path src/.cargo -o -path src/rust/core/tests -o -path src/rust/bench -o -path src/rust/core/examples -o -path src/rust/core/fuzz -o -path src/rust/scan/examples -o -path src/rust/scan/fuzz \) -prune -o \
      -type f ! -name '*.o' ! -name '*.so' ! -name Makevars -exec cksum {} + 2>/dev/null | LC_ALL=C sort -k 3
  ) || :   # some of these are optional
}
