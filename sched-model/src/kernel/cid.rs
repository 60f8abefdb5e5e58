//! rseq's `mm_cid`: an id for each CPU that runs a user of an address space, which others may take back.
//!
//! A CPU that switches to a user takes the id it had here before, if nobody has taken it back. Who takes it back marks it,
//! looks whether the CPU runs a user of the address space, and frees the id if not. So the CPU must have said what it runs
//! before it looks at its id: pair L9, at a place that is earlier than membarrier needs (Linux's `switch_mm_cid`; on arm64 no
//! barrier was there). The switch path gives none so early where no MMU moves; whoever has such ids brings it.

use lazytlb_core::CpuId;
use lazytlb_core::memory::{AtomicWord, Label, Labelled, Memory, Ordering::*};
use lazytlb_core::mm::MmPtr;
use lazytlb_core::platform::Platform;
use lazytlb_machine::{Kind, Machine, Sim};

use crate::accounted::Accounted;
use crate::platform::{Lab, MmData, address, peek};
use crate::world::World;

/// The barrier between what a CPU says that it runs and its look at its id.
const SWITCH_MM_CID: Label = Label::new("kernel.switch_mm_cid");
/// The barrier between the mark and the look at what the CPU runs.
const CLEAR_CID: Label = Label::new("kernel.clear_cid");

/// The CPU has no id.
const UNSET: usize = 0;
/// It has one.
pub(super) const VALID: usize = 1;
/// It has one, which somebody is about to take back.
const MARKED: usize = 2;

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    /// In a switch, before the switch path says what runs: no user uses the CPU's id from here on. Context: interrupts off.
    pub(crate) fn put_mm_cid(&self, cpu: usize) {
        if self.program.kernel.cid.is_some() {
            self.kernel.cids_in_use[cpu].poke(0);
        }
    }

    /// In a switch, after the switch path has said what runs. Context: interrupts off.
    pub(crate) fn switch_mm_cid(&self, cpu: usize, next: usize) {
        let Some(mm) = self.program.kernel.cid else { return };
        let (id, in_use) = (&self.kernel.cids[cpu], &self.kernel.cids_in_use[cpu]);
        if address(peek(|| self.tasks[next].mm())) != self.named[mm].peek().addr() {
            return;
        }
        Sim.fence(SeqCst.at(SWITCH_MM_CID));
        if id.load(Relaxed) != VALID {
            // A fresh one.
            id.swap(VALID, Relaxed);
        }
        in_use.poke(1);
    }

    /// Takes the id of a CPU that runs no user of the address space.
    pub(crate) fn clear_cid(&self, cpu: usize) {
        let Some(mm) = self.program.kernel.cid else { return };
        let id = &self.kernel.cids[cpu];
        if id.compare_exchange(VALID, MARKED, Relaxed, Relaxed).is_err() {
            return;
        }
        Sim.fence(SeqCst.at(CLEAR_CID));
        let wanted = self.named[mm].peek().addr();
        let runs: Option<MmPtr<Lab<R>>> = self.switcher.cpu(CpuId::new(cpu)).curr_mm();
        if address(runs) == wanted || id.compare_exchange(MARKED, UNSET, Relaxed, Relaxed).is_err() {
            return;
        }
        Machine::with(|machine| {
            use lazytlb_core::memory::LocalWord;
            if machine.inspect(|| self.kernel.cids_in_use[cpu].get()) != 0 {
                machine.fail(Kind::Assertion, format!("the mm_cid that cpu{cpu} uses is freed"));
            }
        });
    }
}
