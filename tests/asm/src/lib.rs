//! The hot paths as functions of their own, so that a test can look at what the compiler made of them.

use lazytlb::core::mm::{CountRef, MmCore, MmPtr};
use lazytlb::hazard::convert::HazardSlot;
use lazytlb::{HazardConvert, LazyTlb, Refcount, Shootdown};
use lazytlb_native::Bare;

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
