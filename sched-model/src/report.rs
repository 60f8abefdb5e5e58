//! What the report of a finding says of the scheduler and of address spaces.

use lazytlb_machine::report::report;
use lazytlb_machine::{Found, ScheduleError};

use crate::model::Model;

impl Model {
    /// Writes the report of what was found, from a replay of its schedule: with what each CPU is on and what each mm is held by at
    /// the moment of the bug, and the barrier that was taken away if one was.
    ///
    /// `replay` is the command that replays it, if there is one.
    ///
    /// # Errors
    /// If the schedule does not fit this model.
    pub fn report(&self, found: &Found, replay: Option<&str>) -> Result<String, ScheduleError> {
        let recording = self.replay(&found.schedule)?;
        let facts = [
            ("Who holds what", self.facts()),
            ("Missing ordering (taken away for this run)", self.taken_away().cloned().collect()),
            ("Planted", self.mutant().iter().map(ToString::to_string).collect()),
        ];
        Ok(report(found, &recording, &facts, replay))
    }
}
