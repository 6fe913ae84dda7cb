#!/usr/bin/env bash
# Plants each bug of mutants.rs in turn and sees that the crash explorer finds it. In a build folder of
# its own: the flag that lets bugs be planted changes every crate.
#   AVHDX_ONLY  a part of the names of those to look at
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTFLAGS="${RUSTFLAGS:-} --cfg avhdx_mutants"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/mutants"
cargo test --locked --test crash -- --ignored --nocapture every_mutant_is_found
