//! The core of `lazytlb`: what every `active_mm` lifetime strategy stands on.
//!
//! When a CPU goes from a user task to a kernel thread it keeps the user page tables loaded (lazy TLB). Something must
//! keep that address space alive, or take it off the CPU, before it is freed. This crate has the parts that all ways to
//! do so share:
//!
//! * [`memory`]: [`Memory`], atomic words with labelled orderings; [`native`]: those of the real machine;
//! * [`platform`]: [`Platform`], what a kernel tells about itself;
//! * [`mm`]: [`Mm`] with its two counts, [`MmWithUser`], [`ARef`];
//! * [`lazy_tlb`]: [`LazyTlb`], what a strategy is;
//! * [`mm_switch`]: [`MmSwitch`](mm_switch::MmSwitch), what lies between the switch path and the MMU;
//! * [`tlb`]: hardware whose cached translations carry a tag;
//! * [`switcher`], [`paths`], [`teardown`]: the [`Switcher`], the switch path itself;
//! * [`smp`]: calls to other CPUs;
//! * [`part`]: strategies made of strategies;
//! * [`waiting`]: mms that wait to be freed, for strategies that free later.
//!
//! A strategy is written once, generic over a platform; whatever runs it is another platform.
//!
//! What says nothing of a context, here and in the strategies' crates, may be called in any: it takes no lock, does not sleep or
//! wait, and neither asks nor changes whether preemption and interrupts are on. What makes per-CPU storage ([`Switcher::new`],
//! [`Mm::new`], [`CpuMask::new`]) needs a context in which the platform has it ([`PerCpu::from_fn`](platform::PerCpu::from_fn)):
//! boot will do.

#![cfg_attr(not(test), no_std)]

pub mod cpumask;
mod host;
pub mod lazy_tlb;
pub mod membarrier;
pub mod memory;
pub mod mm;
pub mod mm_switch;
pub mod native;
pub mod no_lazy;
pub mod part;
pub mod paths;
pub mod platform;
pub mod smp;
pub mod switcher;
pub mod teardown;
pub mod temporary;
pub mod tlb;
pub mod waiting;

pub use cpumask::{Among, CpuId, CpuMask, CpuMaskView};
pub use lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyMm, LazyTlb};
pub use memory::Memory;
pub use mm::{ARef, Mm, MmCore, MmPtr, MmWithUser};
pub use no_lazy::NoLazy;
pub use platform::{IrqsOff, Platform, Warning};
pub use switcher::{Switcher, Task};
