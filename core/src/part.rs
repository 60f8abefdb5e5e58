//! [`Part`]: the [`Host`] as a strategy sees it that is part of another strategy.
//!
//! An enum over strategies is a strategy, and so is a strategy wrapped in another. Its states are made of theirs; where those
//! are says [`PartOf`], and `Part` hands each strategy its own. The library's enum is made so
//! (`lazytlb::AnyLazyTlb`); a kernel that has a strategy of its own can make another.

use core::fmt;
use core::marker::PhantomData;

use crate::cpumask::{Among, CpuId};
use crate::lazy_tlb::{Host, LazyTlb};
use crate::mm::{CountRef, MmCore, MmPtr};
use crate::platform::Platform;

/// Where a strategy's states are among those of the whole.
pub trait PartOf<Whole: LazyTlb<P>, P: Platform>: LazyTlb<P> {
    /// Its state for a CPU.
    fn of_cpu(whole: &Whole::CpuState) -> &Self::CpuState;

    /// Its state in an mm.
    fn of_mm(whole: &Whole::MmState) -> &Self::MmState;

    /// Its state of the machine.
    fn of_shared(whole: &Whole::Shared) -> &Self::Shared;
}

/// The host as one of the strategies sees it: with its own part of each state.
pub struct Part<'a, Whole, H>(&'a H, PhantomData<fn() -> Whole>);

impl<'a, Whole, H> Part<'a, Whole, H> {
    /// A part of the whole's host.
    #[inline]
    pub const fn new(whole: &'a H) -> Self {
        Part(whole, PhantomData)
    }
}

impl<Whole, H> fmt::Debug for Part<'_, Whole, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Part { .. }")
    }
}

impl<P, S, Whole, H> Host<P, S> for Part<'_, Whole, H>
where
    P: Platform,
    Whole: LazyTlb<P>,
    S: PartOf<Whole, P>,
    H: Host<P, Whole>,
{
    fn platform(&self) -> P {
        self.0.platform()
    }

    fn cpu_state(&self, cpu: CpuId) -> &S::CpuState {
        S::of_cpu(self.0.cpu_state(cpu))
    }

    fn mm_state<'a>(&self, mm: &'a MmCore<P>) -> &'a S::MmState {
        S::of_mm(self.0.mm_state(mm))
    }

    fn shared(&self) -> &S::Shared {
        S::of_shared(self.0.shared())
    }

    fn mmdrop(&self, reference: CountRef<P>) {
        self.0.mmdrop(reference);
    }

    unsafe fn free_mm(&self, mm: MmPtr<P>) {
        // SAFETY: the strategy's own word.
        unsafe { self.0.free_mm(mm) };
    }

    fn evict_lazies(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        self.0.evict_lazies(mm, among, is_target);
    }

    fn evict_by_root(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        self.0.evict_by_root(mm, among, is_target);
    }

    unsafe fn evict_unused(&self, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        // SAFETY: the strategy that the switch path runs promises it, though the whole may not.
        unsafe { self.0.evict_unused(among, is_target) };
    }

    fn check_lazies_gone(&self, mm: &MmCore<P>) {
        self.0.check_lazies_gone(mm);
    }
}
