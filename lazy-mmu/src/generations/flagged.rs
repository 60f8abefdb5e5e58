//! G2 and G3: a count, and a flag that says whether the mode is on.

use lazytlb_core::memory::LocalWord;

use super::{Generation, check};
use crate::arch::{LazyMmuArch, Warning};
use crate::state::NativeCounter;

/// v3, 15 October 2025 (20251015082727.2395128): enters the architecture before it counts, and stops the machine at an overflow.
pub type V3<W = NativeCounter> = Flagged<W, 3>;

/// v4, 29 October 2025 (20251029100909.3381140): counts before it enters, and warns.
///
/// An interrupt between the count and the flag would see a section that is none, if interrupts were let in: it would flush an
/// architecture that was not entered (found by Roberts' review).
pub type V4<W = NativeCounter> = Flagged<W, 4>;

/// A count of sections and whether the mode is on now. A pause clears the flag and needs a section; nothing may be called in it.
#[derive(Debug)]
pub struct Flagged<W, const VERSION: u32> {
    nesting_level: W,
    active: W,
}

impl<W: LocalWord<u8>, const VERSION: u32> Default for Flagged<W, VERSION> {
    fn default() -> Self {
        Flagged { nesting_level: W::new(0), active: W::new(0) }
    }
}

impl<W: LocalWord<u8>, const VERSION: u32> Flagged<W, VERSION> {
    const BUGS: bool = VERSION == 3;
    const ENTERS_FIRST: bool = VERSION == 3;

    fn check_count<A: LazyMmuArch + ?Sized>(arch: &A, is_right: bool, warning: Warning) {
        match arch.debug_vm() && !is_right {
            true if Self::BUGS => arch.bug(warning),
            true => arch.warn(warning),
            false => {}
        }
    }

    /// What pause and resume ask: a section, and the mode as it should be.
    fn check_pause<A: LazyMmuArch + ?Sized>(&self, arch: &A, is_active: bool) {
        if self.nesting_level.get() == 0 {
            check(arch, false, Warning::NotEnabled);
        } else {
            check(arch, (self.active.get() != 0) == is_active, Warning::Paused);
        }
    }
}

impl<W: LocalWord<u8>, const VERSION: u32> Generation for Flagged<W, VERSION> {
    type Section = ();
    type Pause = ();

    const NAME: &'static str = if VERSION == 3 { "v3" } else { "v4" };
    const SOURCE: &'static str = "October 2025";

    fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if arch.in_interrupt() {
            return;
        }
        let before = self.nesting_level.get();
        Self::check_count(arch, before != u8::MAX, Warning::EnableOverflow);
        let after = before.wrapping_add(1);
        if before > 0 {
            check(arch, self.active.get() != 0, Warning::Paused);
            self.nesting_level.set(after);
        } else if Self::ENTERS_FIRST {
            arch.arch_enter_lazy_mmu_mode();
            self.active.set(1);
            self.nesting_level.set(after);
        } else {
            self.nesting_level.set(after);
            self.active.set(1);
            arch.arch_enter_lazy_mmu_mode();
        }
    }

    fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        if arch.in_interrupt() {
            return;
        }
        let before = self.nesting_level.get();
        Self::check_count(arch, before != 0, Warning::DisableUnderflow);
        check(arch, self.active.get() != 0, Warning::Paused);
        self.nesting_level.set(before.wrapping_sub(1));
        if before == 1 {
            self.active.set(0);
            arch.arch_leave_lazy_mmu_mode();
        } else {
            arch.arch_flush_lazy_mmu_mode();
        }
    }

    fn pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if arch.in_interrupt() {
            return;
        }
        self.check_pause(arch, true);
        self.active.set(0);
        arch.arch_leave_lazy_mmu_mode();
    }

    fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        if arch.in_interrupt() {
            return;
        }
        self.check_pause(arch, false);
        if Self::ENTERS_FIRST {
            arch.arch_enter_lazy_mmu_mode();
            self.active.set(1);
        } else {
            self.active.set(1);
            arch.arch_enter_lazy_mmu_mode();
        }
    }

    fn is_on(&self) -> bool {
        self.active.get() != 0
    }

    /// The second is whether a section is paused.
    fn counts(&self) -> (u8, u8) {
        let level = self.nesting_level.get();
        (level, u8::from(level > 0 && self.active.get() == 0))
    }
}
