//! The hot paths as functions of their own, so that a test can look at what the compiler made of them.

use std::cell::Cell;

use lazytlb::core::mm::{CountRef, MmCore, MmPtr};
use lazytlb::hazard::convert::HazardSlot;
use lazytlb::lazy_mmu::LazyMmuState;
use lazytlb::lazy_mmu::backends::Arm64;
use lazytlb::mmu_notifier::Range;
use lazytlb::{HazardConvert, LazyTlb, Refcount, Shootdown};
use lazytlb_native::Bare;
use lazytlb_native::mmu::{BareMmu, ByHand};
use lazytlb_native::notifier::{ByHazards, CompiledOut, Mm};

/// A platform whose calls are empty.
pub type P = Bare<64>;

/// A borrow begins under `HazardConvert`.
#[unsafe(no_mangle)]
pub fn hazard_mmgrab_lazy_tlb(slot: &HazardSlot<P>, mm: &MmCore<P>) {
    HazardConvert::new().mmgrab_lazy_tlb(P::NEW, slot, &(), mm);
}

/// The MMU has left a borrowed mm under `HazardConvert`.
#[unsafe(no_mangle)]
pub fn hazard_leave_lazy_tlb(slot: &HazardSlot<P>) {
    HazardConvert::new().leave_lazy_tlb(P::NEW, slot);
}

/// The tail of a switch under `HazardConvert`.
#[unsafe(no_mangle)]
pub fn hazard_switch_tail(slot: &HazardSlot<P>) -> Option<CountRef<P>> {
    HazardConvert::new().switch_tail(P::NEW, slot)
}

/// A borrow ends under `HazardConvert`.
#[unsafe(no_mangle)]
pub fn hazard_mmdrop_lazy_tlb(mm: MmPtr<P>) -> Option<CountRef<P>> {
    LazyTlb::<P>::mmdrop_lazy_tlb(&HazardConvert::new(), P::NEW, mm)
}

/// A borrow begins under `Refcount`.
#[unsafe(no_mangle)]
pub fn refcount_mmgrab_lazy_tlb(mm: &MmCore<P>) {
    Refcount.mmgrab_lazy_tlb(P::NEW, &(), &(), mm);
}

/// A borrow begins under `Shootdown`.
#[unsafe(no_mangle)]
pub fn shootdown_mmgrab_lazy_tlb(mm: &MmCore<P>) {
    Shootdown { debug_shoot_lazies: false }.mmgrab_lazy_tlb(P::NEW, &(), &(), mm);
}

/// A borrow ends under `Shootdown`.
#[unsafe(no_mangle)]
pub fn shootdown_mmdrop_lazy_tlb(mm: MmPtr<P>) -> Option<CountRef<P>> {
    LazyTlb::<P>::mmdrop_lazy_tlb(&Shootdown { debug_shoot_lazies: false }, P::NEW, mm)
}

/// A section begins, on arm64.
#[unsafe(no_mangle)]
pub fn lazy_mmu_enable(state: &LazyMmuState) {
    state.lazy_mmu_mode_enable(&Arm64(BareMmu));
}

/// A section ends.
#[unsafe(no_mangle)]
pub fn lazy_mmu_disable(state: &LazyMmuState) {
    state.lazy_mmu_mode_disable(&Arm64(BareMmu));
}

/// A section begins, with counters that are cells.
#[unsafe(no_mangle)]
pub fn lazy_mmu_enable_in_cells(state: &LazyMmuState<Cell<u8>>) {
    state.lazy_mmu_mode_enable(&Arm64(BareMmu));
}

/// A section ends, likewise.
#[unsafe(no_mangle)]
pub fn lazy_mmu_disable_in_cells(state: &LazyMmuState<Cell<u8>>) {
    state.lazy_mmu_mode_disable(&Arm64(BareMmu));
}

/// The same counters by hand.
#[unsafe(no_mangle)]
pub fn by_hand_enable(counters: &ByHand) {
    counters.enable();
}

/// The same counters by hand.
#[unsafe(no_mangle)]
pub fn by_hand_disable(counters: &ByHand) {
    counters.disable();
}

/// A change of page tables, where somebody may be subscribed.
#[unsafe(no_mangle)]
pub fn mmu_notifier_pair(mm: &Mm<ByHazards>, range: &Range) {
    mm.pair(range);
}

/// The same, in a kernel without MMU notifiers.
#[unsafe(no_mangle)]
pub fn mmu_notifier_pair_compiled_out(mm: &Mm<CompiledOut>, range: &Range) {
    mm.pair(range);
}
