//! The epoch family: nobody can tell what a CPU borrows, only whether it borrows at all, or since when.
//!
//! Epochs and grace periods free what nobody can use any more without knowing who used it. That suits short read sections.
//! A lazy borrow is not short: an idle CPU borrows for as long as it sleeps. It is the question that was put to RCU
//! (Matthew Wilcox, December 2020) and why it could not answer: RCU does not wait for idle CPUs, and those are the
//! borrowers. A scheme that does wait for them is stalled by them:
//!
//! * [`EpochQs`]: one idle borrower holds up *the grace period*, and so every mm that dies meanwhile, whichever it was;
//! * [`EpochPinned`]: the same, for every mm that dies while it is pinned or in the epoch after.
//!
//! So there is no bound on what one idle CPU pins. Both can be told to end a borrow when a CPU goes idle for long
//! (`evict_at_idle`), which gives a bound and costs a root load at each wake-up.
//!
//! They are here to be measured beside the slots of `lazytlb-hazard`, which cost the same and know what they hold.

#![cfg_attr(not(test), no_std)]

pub mod pinned;
pub mod qs;

pub use pinned::EpochPinned;
pub use qs::EpochQs;
