//! Strategies with one step wrong: planted bugs of logic, which the checker must find.
//!
//! Wrong orderings need no mutant: the lab drops the access with a given label.

use core::fmt;
use core::str::FromStr;

use lazytlb_core::mm::MmCore;
use lazytlb_core::platform::Platform;
use lazytlb_hazard::convert::{ConvertSteps, HazardSlot};

use crate::strategies::{UnknownName, by_name};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutant {
    /// Nothing in the library: the test's own statements break a rule.
    Caller,
    /// [`CountAfterGive`].
    CountAfterGive,
    /// [`StaleSlot`].
    StaleSlot,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 3] = [Mutant::Caller, Mutant::CountAfterGive, Mutant::StaleSlot];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Mutant::Caller => "caller",
            Mutant::CountAfterGive => "count-after-give",
            Mutant::StaleSlot => "stale-slot",
        }
    }
}

impl FromStr for Mutant {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("mutant", name, &Mutant::ALL, Mutant::name)
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first trap: `drop_mm` names the mm before the reference is counted, and the CPU may drop it at once (B03).
#[derive(Clone, Copy, Debug)]
pub struct CountAfterGive;

impl<P: Platform> ConvertSteps<P> for CountAfterGive {
    fn raise_count(_mm: &MmCore<P>, _references: usize) {}

    fn hand_out(slot: &HazardSlot<P>, older: *mut MmCore<P>, mm: &MmCore<P>) -> bool {
        let given = slot.give(older, mm);
        if given {
            mm.count_add(1);
        }
        given
    }

    fn lower_count(_mm: &MmCore<P>, _references: usize) {}
}

/// The second trap: whether the CPU is done with what its `drop_mm` names is told from a look that was before (B04).
#[derive(Clone, Copy, Debug)]
pub struct StaleSlot;

impl<P: Platform> ConvertSteps<P> for StaleSlot {
    fn borrows_still(_slot: &HazardSlot<P>, mm: *mut MmCore<P>, seen: *mut MmCore<P>) -> bool {
        seen == mm
    }
}
