//! `HazardConvert`'s slot under loom, complete for two CPUs, with the release of its unpublish made relaxed and
//! caught; and pair L5 under `GeneralHazard`, with its fence left out and caught.
//!
//! The scan's own acquire cannot be judged here: the mmdrop that follows it is a full barrier and does its work. Pair L3 (`hazard.give` and `hazard.take`) is out of loom's reach: its RMWs take effect in the order in which it runs
//! them, so a count that is raised before `drop_mm` is set is never seen raised after.

use std::panic::catch_unwind;

use lazytlb_hazard::general::{self, GeneralSlot};
use lazytlb_hazard::{GeneralHazard, HazardConvert, slot};
use lazytlb_loom::{Loom, acquire_without_owning, borrow_and_leave, two_exits};
use lazytlb_refcount::Refcount;

/// One test, because the weakened label is one for the process.
#[test]
fn the_slot_protects_and_needs_its_release() {
    two_exits(Refcount);
    two_exits(HazardConvert::new());
    borrow_and_leave(HazardConvert::new(), "");
    let caught = catch_unwind(|| borrow_and_leave(HazardConvert::new(), slot::UNPUBLISH.name()));
    assert!(caught.is_err(), "a relaxed unpublish goes unnoticed");
    let holds = |slot: &GeneralSlot<Loom>, mm| slot.slot_holds(Loom, mm) || slot.scan_backup(mm);
    acquire_without_owning(GeneralHazard::new(), "", holds);
    let caught = catch_unwind(|| acquire_without_owning(GeneralHazard::new(), general::ACQUIRE.name(), holds));
    assert!(caught.is_err(), "a fence that is left out between slot and pointer goes unnoticed (L5)");
}
