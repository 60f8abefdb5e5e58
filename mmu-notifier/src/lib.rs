//! MMU notifiers: who else translates by an address space's page tables is told before they change.
//!
//! A virtual machine's nested tables, a GPU, a network card: all of them translate a process's addresses by tables or caches of their own, and hold no
//! references to its pages. So before a page is taken away each of them must have let go of it, and none may take it up again until the page
//! tables say what is there now. The chain is where they subscribe, and what memory management calls around each change:
//!
//! * [`Chain`], one in each mm; [`Range`], what changes; [`RangeGuard`], from before to behind the change;
//! * [`subscriber`]: what a subscriber does, by its contract ([`Mirror`], [`Refusing`], [`SharedTables`]);
//! * `subscription` (feature `alloc`): the same with what owns it, so that no order is left to get wrong; `shared`, with several owners;
//! * [`interval`]: subscribers of some addresses only, and how they tell that what they have looked up is still so;
//! * [`walks`]: what keeps subscribers in place while they are called, which may take long and sleep; three schemes;
//! * [`kernel`]: what it asks of a kernel;
//! * [`former`]: the list as it was posted, reviewed and merged since 2008, and [`rmap`], the second class of 2008, to be compared.
//!
//! Nothing is allocated but by `Subscription`s: nodes are the subscribers', and the chain is the mm's. All words are of the kernel's [`Memory`](lazytlb_core::Memory), so a model runs
//! this very code.

#![cfg_attr(not(test), no_std)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod chain;
pub mod former;
pub mod interval;
mod invalidate;
pub mod kernel;
mod list;
#[cfg(feature = "alloc")]
mod placed;
pub mod range;
pub mod rmap;
#[cfg(feature = "alloc")]
pub mod shared;
pub mod subscriber;
#[cfg(feature = "alloc")]
pub mod subscription;
pub mod task;
mod tree;
pub mod walks;

pub use chain::{Chain, Interrupted, MmapWrite, RegisterError, UnregisterError};
pub use interval::{Finish, IntervalNode, IntervalState, Invalidated, Invalidating, MmuIntervalNotifier};
pub use invalidate::RangeGuard;
pub use kernel::{NotifierKernel, NotifierMm, PollingLock, SpinLock, Warning, Work};
pub use range::{EmptyRange, Event, Invalidation, Owner, Range, WouldBlock};
#[cfg(feature = "alloc")]
pub use shared::SharedSubscription;
pub use subscriber::{Contract, Mirror, MmuNotifier, Node, Refusing, SharedTables};
#[cfg(feature = "alloc")]
pub use subscription::{IntervalSubscription, ReadTicket, Retry, Subscription};
pub use task::NotifierTask;
pub use walks::{Epochs, Hazards, Srcu, Walks};
