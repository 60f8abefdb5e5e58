//! What the tests of what states are taken for one share.

use lazytlb_machine::{Exploration, Kind};

/// For as long as the machine that has it; each test keeps its machine to the end.
pub(crate) fn placed<T: ?Sized>(reference: &mut T) -> &'static T {
    let reference: *const T = reference;
    // SAFETY: in the arena, which lives as long as the machine that runs the tasks.
    unsafe { &*reference }
}

/// Whether the search has noticed that a program remembers what it says it does not.
pub(crate) fn takes_a_state_for_another(exploration: &Exploration) -> bool {
    let says = |message: &str| message.starts_with("a state is taken for another");
    exploration.found.iter().any(|found| found.verdict.kind == Kind::Panic && says(&found.verdict.message))
}
