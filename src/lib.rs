//! Lifetime strategies for a lazily held address space, for people who build kernels.
//!
//! When a CPU goes from a user task to a kernel thread it keeps the user page tables loaded (lazy TLB). Something must
//! keep that address space (`mm`) alive, or take it off the CPU, before it is freed. Linux counts a reference on each
//! such switch: one cache line for which the biggest machines contend. This crate has the known ways to do it, each
//! written once, generic over a [`Platform`] that a kernel implements.
//!
//! | strategy | a borrow costs | freeing costs |
//! | --- | --- | --- |
//! | [`Refcount`] | two RMWs on a shared line | nothing more |
//! | [`RefcountDeferred`] | two RMWs on a shared line | a worker, where the last reference may not be dropped |
//! | [`RefcountPerCpu`] | one full barrier; a switch to another user costs two RMWs | nothing more |
//! | [`Shootdown`] | one full barrier | an interrupt to each CPU of `mm_cpumask` |
//! | [`ShootdownBatched`] | one full barrier | the same, once for many mms |
//! | [`UsersOnly`] | one full barrier | nothing more, where the flush of the last mmput ends borrows |
//! | [`LazyFix`] | one full barrier | an interrupt to each CPU of `mm_cpumask`, one after the other |
//! | [`HazardIpi`] | two plain stores and two full barriers | a look at each CPU's slot; an interrupt to each borrower |
//! | [`HazardDeadline`] | two plain stores, one full barrier, one load | a look at each CPU's slot; an interrupt to who still borrows after a while |
//! | [`GeneralHazard`] | five stores and two full barriers | a look at each CPU's slots |
//! | [`EpochQs`], [`EpochPinned`] | two plain stores, one full barrier, two loads | waits for every CPU that borrows anything |
//! | [`HazardConvert`] | two plain stores and one full barrier | a look at each CPU's slot |
//! | [`NoLazy`] | an MMU switch each way | nothing |
//!
//! [`AnyLazyTlb`] chooses among them at boot.
//!
//! [`lazy_mmu`] is another matter: the mode in which page-table changes are batched, for whoever writes to page tables.
//!
//! [`mmu_notifier`] is a third: who else translates by an address space's tables is told before they change.
//!
//! Start with [`core::platform`], which says what to implement, then
//! [`Switcher`], which is the switch path to call.

#![cfg_attr(not(test), no_std)]

pub mod any;

pub use any::AnyLazyTlb;
pub use lazytlb_core as core;
pub use lazytlb_core::{
    ARef, CpuId, CpuMask, Host, IrqsOff, KeepsMmAlive, LazyMm, LazyTlb, Memory, Mm, MmWithUser, NoLazy, Platform,
    Switcher, Task, Warning,
};
pub use lazytlb_epoch::{self as epoch, EpochPinned, EpochQs};
pub use lazytlb_hazard::{self as hazard, GeneralHazard, HazardConvert, HazardDeadline, HazardIpi};
pub use lazytlb_lazy_mmu as lazy_mmu;
pub use lazytlb_mmu_notifier as mmu_notifier;
pub use lazytlb_refcount::{self as refcount, Refcount, RefcountDeferred, RefcountPerCpu};
pub use lazytlb_shootdown::{self as shootdown, LazyFix, Shootdown, ShootdownBatched, UsersOnly};
