//! Replays scheduler traces of real kernels through the strategies, by their own code, and counts what each would cost.
//!
//! * [`text`]: traces as text, one [`event::Event`] a line.
//! * [`Replayer`]: from events to what the switch path sees; tasks and address spaces, inferred where the trace says
//!   nothing.
//! * [`Truth`]: on x86 a kernel's own `tlb_flush` events say when it loaded a page-table root. Each is compared with what
//!   the replay of that kernel's own scheme predicts.
//! * [`Counts`]: what a strategy has done.
//!
//! Memory does not grow with the trace: events are handled as they are read, and tasks and address spaces are forgotten
//! when they end.

mod driver;
mod engine;
pub mod event;
pub mod platform;
mod tasks;
pub mod text;
mod truth;

pub use driver::{Options, Replayer, Report, StrategyReport};
pub use platform::Counts;
pub use tasks::{TasksError, TasksFile};
pub use truth::{Disagreement, Truth};
