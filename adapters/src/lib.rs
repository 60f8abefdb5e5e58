//! Strategies over crates that allocate, for those who have them in their kernel already, and to measure ours beside.
//!
//! | strategy | is | needs |
//! | --- | --- | --- |
//! | [`CrossbeamEpoch`] | `crossbeam-epoch`: pinned for as long as the CPU borrows | an allocator |
//! | [`ArcPerCpu`] | `arc-swap`: an `Arc` in a slot of each CPU | std |
//! | [`AnyLazyTlbAlloc`] | one of them, or one of the library's, chosen at boot | std |
//!
//! The library's own strategies touch memory only through [`Memory`](lazytlb::Memory), so that the lab explores every step of
//! them. These have their steps in other crates, on words of their own, where no model sees them: **they are explored around
//! and not inside**. What the switch path does around them is what the lab explores under every strategy; what they do themselves
//! is tortured natively, by threads that are CPUs (`adapters/tests/torture.rs`), and rests on the other crates' own tests. They are
//! therefore no strategies of the lab, of its replay, or of its costs, and [`NativePlatform`] keeps them off simulated memory.
//!
//! For a kernel there is no reason to prefer them: `EpochPinned` and `RefcountPerCpu` are the same two schemes without
//! allocation, explored inside.

#![cfg_attr(not(feature = "arc-swap"), no_std)]

extern crate alloc;

#[cfg(feature = "arc-swap")]
pub mod arc_per_cpu;
#[cfg(feature = "arc-swap")]
pub mod boot;
pub mod crossbeam;

#[cfg(feature = "arc-swap")]
pub use arc_per_cpu::ArcPerCpu;
#[cfg(feature = "arc-swap")]
pub use boot::AnyLazyTlbAlloc;
pub use crossbeam::CrossbeamEpoch;

use core::sync::atomic::AtomicUsize;

use lazytlb::Platform;

/// A platform on native memory: the only kind on which code that does not go through [`Memory`](lazytlb::Memory) means what it
/// says. A model that undoes and repeats executions would find what these crates keep on their heap as it was left.
pub trait NativePlatform: Platform<AtomicUsize = AtomicUsize> {}

impl<P: Platform<AtomicUsize = AtomicUsize>> NativePlatform for P {}
