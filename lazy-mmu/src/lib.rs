//! Lazy MMU mode: a stretch of code that changes many page-table entries tells the architecture, which may then postpone a part of
//! each change and do it for many at once.
//!
//! What is postponed differs by architecture: a barrier (arm64), the invalidation of the old entry (powerpc, sparc64), the store
//! itself (Xen, s390). What is common is when it must have happened, and that is this crate's:
//!
//! * [`LazyMmuState`], the two counters that Linux 7.0 has in each task, with the calls on them; [`LazyMmuArch`], the callbacks;
//! * [`scope`], guards: [`Section`], [`Pause`], [`MaySleep`];
//! * [`levels`], an opt-in: state of each level, and a pause that remembers;
//! * [`generations`], how the API was before, and was proposed to be;
//! * [`conformance`], programs that tell them apart;
//! * [`backends`], what architectures do between enter and leave.
//!
//! It allocates nothing and takes no lock, and a kernel needs of it what it wants to use: two bytes in the task and three callbacks.
//!
//! ```
//! use lazytlb_lazy_mmu::{LazyMmuArch, LazyMmuState};
//!
//! struct Arch;
//!
//! impl LazyMmuArch for Arch {
//!     type Ptes = ();
//!     fn in_interrupt(&self) -> bool {
//!         false // of the preemption count
//!     }
//!     fn arch_enter_lazy_mmu_mode(&self) {}
//!     fn arch_leave_lazy_mmu_mode(&self) {
//!         // the barriers, if a change asked for them
//!     }
//!     fn arch_flush_lazy_mmu_mode(&self) {}
//! }
//!
//! let current = LazyMmuState::new(); // in the task
//! current.lazy_mmu_mode_enable(&Arch);
//! assert!(current.is_lazy_mmu_mode_active(&Arch));
//! // many set_pte
//! current.lazy_mmu_mode_disable(&Arch);
//! assert!(!current.is_lazy_mmu_mode_active(&Arch));
//! ```

#![cfg_attr(not(test), no_std)]

pub mod arch;
pub mod backends;
pub mod conformance;
pub mod generations;
pub mod levels;
pub mod scope;
pub mod state;

pub use arch::{LazyMmuArch, Warning};
pub use generations::Generation;
pub use levels::ArchLevels;
pub use scope::{Anywhere, MaySleep, Pause, Section};
pub use state::LazyMmuState;
