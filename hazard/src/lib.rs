//! The hazard-pointer family: each CPU publishes what it borrows in a slot that only it writes.
//!
//! A lazy TLB borrow is the best case of a hazard pointer. There is one slot per CPU, and the CPU that publishes
//! already keeps the mm alive by a user, so publishing needs neither a fence nor a second look: a plain store.
//!
//! * [`HazardConvert`], Andy Lutomirski's scheme, turns a slot into a counted reference when the mm dies;
//! * [`HazardIpi`], Mathieu Desnoyers', interrupts those whose slots name the dying mm;
//! * [`HazardDeadline`], ours, waits for them for a while and interrupts those that are left;
//! * [`GeneralHazard`] uses the general hazard pointers that Linux has been offered, to show what the wrong shape costs.

#![cfg_attr(not(test), no_std)]

pub mod convert;
pub mod deadline;
pub mod general;
pub mod ipi;
pub mod slot;

pub use convert::{Convert, HazardConvert};
pub use deadline::HazardDeadline;
pub use general::GeneralHazard;
pub use ipi::HazardIpi;
