//! KASAN's bookkeeping over an arena: shadow bytes, redzones, quarantine, allocation and free tracks, reports.
//!
//! The Linux kernel's Address Sanitizer keeps one shadow byte for each 8 bytes of memory and asks it before each access
//! (`mm/kasan/`, `Documentation/dev-tools/kasan.rst`). This crate keeps the same bytes, with the same meaning, for a
//! window of addresses that a simulator or a test lays out by itself. It never touches the memory; it only knows.
//!
//! * [`Kasan`] is the window: static objects and slab-like caches, [`check`](Kasan::check) for each access.
//! * [`Report`] prints what went wrong in the kernel's order and words.
//!
//! It differs from the kernel's in what a deterministic explorer needs:
//!
//! * Freed memory is reused at once unless a [quarantine](Geometry::quarantine) is asked for: reuse is the hazard that
//!   a lifetime scheme must survive, and a quarantine hides it. Each slot counts its [generations](ObjectInfo).
//! * The whole state can be put back to a [sealed](Kasan::seal) image, at the cost of what was touched since, and has a
//!   [hash](Kasan::state_hash) that depends on the state and not on how it was reached.
//! * Tracks cost time and memory, so they are kept only while [recording](Kasan::set_recording).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod report;
mod shadow;
mod track;
mod window;

pub use report::{Note, Report, Title};
pub use shadow::{Access, Addr, BadAccess, BugType, GRANULE};
pub use track::{Frame, Track};
pub use window::{BadFree, CacheId, Full, Geometry, Kasan, ObjectInfo, ObjectKind, OutOfMemory, Saved, SlotState};
