//! The strategies on real threads: each CPU is a thread, page tables are objects that are watched, and interrupts are real-time signals, which come
//! between any two instructions, or requests that a CPU polls for.
//!
//! * [`Machine`] is a booted one; [`Machine::cpu`] makes the calling thread one of its CPUs.
//! * [`Host`] is the platform, a handle to its [`Hardware`].
//! * What is found wrong is written down ([`Machine::found`]), wherever it happens, an interrupt included: a root that is loaded or walked when it is
//!   freed, tables that are freed while a CPU's walk cache has them, a freed mm that is looked into, whatever the library warns of.
//!
//! The memory of mms and of roots is never given back to the allocator, so touching a freed one is defined, and found. It is used again at once: what
//! comes too late finds somebody else's.
//!
//! Context: one machine for each thread. Interrupts are disabled by a flag, as Linux on powerpc does it: a signal that comes meanwhile is
//! noted, and served when they are enabled again.

mod hardware;
mod life;
mod machine;
mod platform;
mod signals;
pub mod wrong;

pub use hardware::{Config, Finding, Hardware, Interrupts};
pub use life::{Pool, live};
pub use machine::{Cpu, Machine, User};
pub use platform::{CpuVec, Host, HostPlatform};
