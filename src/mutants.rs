//! Bugs to be planted, one at a time, in a build that is for nothing else: `--cfg avhdx_mutants`. They
//! show that the tests which hunt for lost data would find it.

/// Whether the bug of this name is planted: the one that `AVHDX_MUTANT` names.
#[cfg(avhdx_mutants)]
pub(crate) fn planted(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("AVHDX_MUTANT").unwrap_or_default()) == name
}

/// Never, in a build that is not for it.
#[cfg(not(avhdx_mutants))]
pub(crate) const fn planted(_: &str) -> bool {
    false
}
