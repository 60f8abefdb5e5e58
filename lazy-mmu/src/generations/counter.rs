//! G1': what was answered to the caller's stack.

use lazytlb_core::memory::LocalWord;

use super::{Generation, check};
use crate::arch::{LazyMmuArch, Warning};
use crate::state::NativeCounter;

/// A count and a flag in the task, with checks: Hildenbrand's proposal in the thread on v2, 10 and 11 September 2025 (G1').
///
/// Between pause and continue nothing may be called, neither enable nor disable nor another pause; the checks were half of
/// the point. No code was posted: a call that fails its check does here what it would have done, as kernel warnings go.
#[derive(Debug)]
pub struct Counter<W = NativeCounter> {
    enabled_count: W,
    paused: W,
}

impl<W: LocalWord<u8>> Default for Counter<W> {
    fn default() -> Self {
        Counter { enabled_count: W::new(0), paused: W::new(0) }
    }
}

/// One section more. Says whether it is the first.
fn count_up<A: LazyMmuArch + ?Sized>(count: &impl LocalWord<u8>, arch: &A) -> bool {
    let before = count.get();
    check(arch, before != u8::MAX, Warning::EnableOverflow);
    count.set(before.wrapping_add(1));
    before == 0
}

/// One section less. Says whether it was the last.
fn count_down<A: LazyMmuArch + ?Sized>(count: &impl LocalWord<u8>, arch: &A) -> bool {
    let before = count.get();
    check(arch, before != 0, Warning::DisableUnderflow);
    count.set(before.wrapping_sub(1));
    before == 1
}

/// The end of a section: the last one leaves, the others flush.
fn end<A: LazyMmuArch + ?Sized>(count: &impl LocalWord<u8>, arch: &A) {
    if count_down(count, arch) {
        arch.arch_leave_lazy_mmu_mode();
    } else {
        arch.arch_flush_lazy_mmu_mode();
    }
}

impl<W: LocalWord<u8>> Generation for Counter<W> {
    type Section = ();
    type Pause = ();

    const NAME: &'static str = "counter";
    const SOURCE: &'static str = "Hildenbrand, September 2025";

    fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if arch.in_interrupt() {
            return;
        }
        check(arch, self.paused.get() == 0, Warning::Paused);
        if count_up(&self.enabled_count, arch) {
            arch.arch_enter_lazy_mmu_mode();
        }
    }

    fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        if arch.in_interrupt() {
            return;
        }
        check(arch, self.paused.get() == 0, Warning::Paused);
        end(&self.enabled_count, arch);
    }

    fn pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if arch.in_interrupt() {
            return;
        }
        check(arch, self.paused.get() == 0, Warning::Paused);
        self.paused.set(1);
        if self.enabled_count.get() > 0 {
            arch.arch_leave_lazy_mmu_mode();
        }
    }

    /// Called *continue* in the proposal.
    fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        if arch.in_interrupt() {
            return;
        }
        check(arch, self.paused.get() != 0, Warning::Paused);
        self.paused.set(0);
        if self.enabled_count.get() > 0 {
            arch.arch_enter_lazy_mmu_mode();
        }
    }

    fn is_on(&self) -> bool {
        self.enabled_count.get() > 0 && self.paused.get() == 0
    }

    fn counts(&self) -> (u8, u8) {
        (self.enabled_count.get(), self.paused.get())
    }
}

/// A count in the task, and a pair that takes it away and gives it back (G1', `disable_save` and `restore`).
///
/// Named in the thread on v2 as what a count would need in order to be left at any depth: disable_save leaves the mode and returns the
/// level, restore enters it again at that level. What is enabled in between is a section like any other, and batches.
#[derive(Debug)]
pub struct CounterSave<W = NativeCounter> {
    enabled_count: W,
}

impl<W: LocalWord<u8>> Default for CounterSave<W> {
    fn default() -> Self {
        CounterSave { enabled_count: W::new(0) }
    }
}

impl<W: LocalWord<u8>> Generation for CounterSave<W> {
    type Section = ();
    /// The level.
    type Pause = u8;

    const NAME: &'static str = "counter-save";
    const SOURCE: &'static str = "thread on v2, September 2025";

    fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if !arch.in_interrupt() && count_up(&self.enabled_count, arch) {
            arch.arch_enter_lazy_mmu_mode();
        }
    }

    fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        if !arch.in_interrupt() {
            end(&self.enabled_count, arch);
        }
    }

    fn pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) -> u8 {
        if arch.in_interrupt() {
            return 0;
        }
        let level = self.enabled_count.get();
        self.enabled_count.set(0);
        if level > 0 {
            arch.arch_leave_lazy_mmu_mode();
        }
        level
    }

    fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, level: u8) {
        if arch.in_interrupt() {
            return;
        }
        check(arch, self.enabled_count.get() == 0, Warning::Paused);
        self.enabled_count.set(level);
        if level > 0 {
            arch.arch_enter_lazy_mmu_mode();
        }
    }

    fn is_on(&self) -> bool {
        self.enabled_count.get() > 0
    }

    fn counts(&self) -> (u8, u8) {
        (self.enabled_count.get(), 0)
    }
}
