//! All generations of the API behind one trait, so that they can be compared on the same programs.
//!
//! | | when | state in the task | pause |
//! | --- | --- | --- | --- |
//! | [`Hooks`] (G0) | 2006 to 2025 | the architecture's own flag | leave, then enter |
//! | [`Stack`] (G1) | v1, v2, September 2025 | the same; nesting is on the caller's stack | leave as if outermost, then enter |
//! | [`Counter`] (G1') | Hildenbrand's answer to v2 | a count and a flag | a flag, not in a pause |
//! | [`CounterSave`] (G1') | named in the same thread | a count | takes the count away, and gives it back |
//! | [`V3`] (G2) | v3, October 2025 | a count and a flag | clears the flag, in a section only |
//! | [`V4`] (G3) | v4, October 2025 | the same | the same |
//! | [`LazyMmuState`] (G4) | v5 and v6, merged for 7.0 | two counts | a count of its own |
//!
//! All of them do nothing in an interrupt: that was arm64's own rule in G0 and G1 (b81c688426a9), a later patch of the series in v3
//! and v4, and part of G4. An architecture whose [`in_interrupt`](LazyMmuArch::in_interrupt) is always false shows each
//! without.

mod counter;
mod flagged;
mod hooks;

pub use counter::{Counter, CounterSave};
pub use flagged::{Flagged, V3, V4};
pub use hooks::{Found, Hooks, Stack};

use lazytlb_core::memory::LocalWord;

use crate::arch::{LazyMmuArch, Warning};
use crate::state::LazyMmuState;

/// The state of a task in one generation of the API, with its four calls.
///
/// Context of all: that of [`LazyMmuState`]'s.
pub trait Generation: Default {
    /// What enable gives its caller, to be given to disable. Its default is what a disable without enable passes.
    type Section: Default;
    /// What pause gives its caller, to be given to resume. Its default is what a resume without pause passes.
    type Pause: Default;

    /// What it is called.
    const NAME: &'static str;
    /// When it was what the kernel had, or was proposed to have.
    const SOURCE: &'static str;

    /// Begins a section.
    fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) -> Self::Section;

    /// Begins a section with a hint. Only the merged generation has it; in the others the hint is lost.
    fn enable_with_ptes<A: LazyMmuArch + ?Sized>(&self, arch: &A, ptes: A::Ptes) -> Self::Section {
        let _ = ptes;
        self.enable(arch)
    }

    /// Ends a section.
    fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, section: Self::Section);

    /// Switches the mode off for a while.
    fn pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) -> Self::Pause;

    /// Ends a pause.
    fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, pause: Self::Pause);

    /// Whether the task has the mode on, an interrupt or not.
    fn is_on(&self) -> bool;

    /// How often the mode is enabled, and how often it is paused, as far as the generation knows.
    fn counts(&self) -> (u8, u8);

    /// Whether the mode is on here and now.
    fn is_active<A: LazyMmuArch + ?Sized>(&self, arch: &A) -> bool {
        !arch.in_interrupt() && self.is_on()
    }
}

impl<W: LocalWord<u8>> Generation for LazyMmuState<W> {
    type Section = ();
    type Pause = ();

    const NAME: &'static str = "merged";
    const SOURCE: &'static str = "v6, merged for Linux 7.0";

    fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        self.lazy_mmu_mode_enable(arch);
    }
    fn enable_with_ptes<A: LazyMmuArch + ?Sized>(&self, arch: &A, ptes: A::Ptes) {
        self.lazy_mmu_mode_enable_with_ptes(arch, ptes);
    }
    fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        self.lazy_mmu_mode_disable(arch);
    }
    fn pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        self.lazy_mmu_mode_pause(arch);
    }
    fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        self.lazy_mmu_mode_resume(arch);
    }
    fn is_on(&self) -> bool {
        self.task_lazy_mmu_mode_active()
    }
    fn counts(&self) -> (u8, u8) {
        (self.enable_count(), self.pause_count())
    }
}

/// An architecture without the mode (Linux without `CONFIG_ARCH_HAS_LAZY_MMU_MODE`): no state, and calls that do nothing, so that code is
/// the same with and without.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unsupported;

impl Generation for Unsupported {
    type Section = ();
    type Pause = ();

    const NAME: &'static str = "unsupported";
    const SOURCE: &'static str = "all of them, without the mode";

    #[inline]
    fn enable<A: LazyMmuArch + ?Sized>(&self, _: &A) {}
    #[inline]
    fn disable<A: LazyMmuArch + ?Sized>(&self, _: &A, (): ()) {}
    #[inline]
    fn pause<A: LazyMmuArch + ?Sized>(&self, _: &A) {}
    #[inline]
    fn resume<A: LazyMmuArch + ?Sized>(&self, _: &A, (): ()) {}
    fn is_on(&self) -> bool {
        false
    }
    fn counts(&self) -> (u8, u8) {
        (0, 0)
    }
}

/// Warns, where the architecture wants to know.
fn check<A: LazyMmuArch + ?Sized>(arch: &A, is_right: bool, warning: Warning) {
    if arch.debug_vm() && !is_right {
        arch.warn(warning);
    }
}
