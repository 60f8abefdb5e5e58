//! [`EpochPinned`]: epochs, with a CPU pinned for as long as it borrows.
//!
//! The scheme of Keir Fraser's thesis (2004) as crossbeam-epoch and others have it. There is a global epoch. A CPU that
//! begins to borrow notes the epoch that it sees: it is *pinned* there. The epoch advances when every pinned CPU is pinned
//! at the present one. What died in epoch `e` is freed when the epoch is `e + 2`.
//!
//! # Why two, and why pinning needs no fence here
//!
//! The CPU that advances from `e` to `e + 1` may have looked for pinned CPUs before an mm died that is then noted as dead in
//! `e`. The one that advances from `e + 1` to `e + 2` looks later, and sees every CPU that was pinned before that death:
//! the last mmdrop is a full barrier between the pin, which comes before it because the CPU owned a user (pair L1), and the
//! read of the epoch; and a full barrier lies between the first advance and the second's look. If the read gave `e`, it was
//! before the first advance, and so the pin was before the second look. A pinned CPU holds the second advance up, because
//! it is pinned at `e` at the latest. General epochs need a full fence in each pin for want of pair L1.

use core::fmt;

use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::platform::{Platform, Warning};
use lazytlb_core::waiting::{Link, Linked, Turn, Waiting};

/// The store that pins a CPU. Relaxed; see "why pinning needs no fence here".
pub const PIN: Label = Label::new("epoch_pinned.pin");
/// The store that unpins it. Release: the MMU has left (pair L2 with [`LOOK`]).
pub const UNPIN: Label = Label::new("epoch_pinned.unpin");
/// The collector's look at a CPU. Acquire.
pub const LOOK: Label = Label::new("epoch_pinned.look");
/// The RMW that advances the epoch. Full barrier, before the next look.
pub const ADVANCE: Label = Label::new("epoch_pinned.advance");

/// Where a CPU is pinned, 0 if it is not: an epoch as it is noted down, odd. Written by its CPU alone, with interrupts off.
pub struct Pin<P: Platform>(P::AtomicUsize);

impl<P: Platform> Pin<P> {
    /// Of a CPU that does not borrow, from a ready word, zero; `const`, for statics.
    pub const fn from_parts(pinned: P::AtomicUsize) -> Self {
        Pin(pinned)
    }

    /// Whether the CPU borrows something now, for those who watch the machine from outside.
    pub fn borrows(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    /// The epoch in which it is pinned, as it is noted down; 0 if it is not. For those who watch the machine from outside.
    pub fn pinned_in(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Whether it keeps the epoch from advancing.
    fn holds_up(&self, epoch: usize) -> bool {
        let pinned = self.0.load(Acquire.at(LOOK));
        pinned != 0 && pinned != noted(epoch)
    }
}

/// Epochs are counted by twos: one that is noted down is odd, and never 0.
const NEXT: usize = 2;

/// An epoch as it is noted down.
fn noted(epoch: usize) -> usize {
    epoch | 1
}

impl<P: Platform> Slot for Pin<P> {
    fn new() -> Self {
        Pin(AtomicWord::new(0))
    }

    fn reinit(&self) {
        self.0.store(0, Relaxed);
    }
}

impl<P: Platform> fmt::Debug for Pin<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("borrows", &self.borrows()).finish()
    }
}

/// In each mm: when it died.
pub struct Died<P: Platform> {
    link: Link<P>,
    /// The epoch, as it is noted down; 0 of an mm that lives. Written before the mm waits, read by collectors: the list orders the
    /// two.
    epoch: P::AtomicUsize,
}

impl<P: Platform> Died<P> {
    /// Of an mm that lives, from ready parts; `const`, for statics.
    pub const fn from_parts(link: Link<P>, epoch: P::AtomicUsize) -> Self {
        Died { link, epoch }
    }

    /// The epoch in which it died, as it is noted down; 0 if it lives. For those who watch the machine from outside.
    pub fn died_in(&self) -> usize {
        self.epoch.load(Relaxed)
    }
}

impl<P: Platform> Slot for Died<P> {
    fn new() -> Self {
        Died { link: Slot::new(), epoch: AtomicWord::new(0) }
    }

    fn reinit(&self) {
        self.link.reinit();
        self.epoch.store(0, Relaxed);
    }
}

impl<P: Platform> Linked<P> for Died<P> {
    fn link(&self) -> &Link<P> {
        &self.link
    }
}

impl<P: Platform> fmt::Debug for Died<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Died").field("epoch", &self.died_in()).finish_non_exhaustive()
    }
}

/// The epoch, and all that waits.
pub struct Epoch<P: Platform> {
    epoch: P::AtomicUsize,
    waiting: Waiting<P>,
}

impl<P: Platform> Epoch<P> {
    /// The first epoch, from ready parts, zero and empty; `const`, for statics.
    pub const fn from_parts(epoch: P::AtomicUsize, waiting: Waiting<P>) -> Self {
        Epoch { epoch, waiting }
    }

    /// What waits, for those who watch the machine from outside.
    pub fn waiting(&self) -> &Waiting<P> {
        &self.waiting
    }

    /// The present epoch: twice their number. For those who watch the machine from outside.
    pub fn epoch(&self) -> usize {
        self.epoch.load(Relaxed)
    }
}

impl<P: Platform> Slot for Epoch<P> {
    fn new() -> Self {
        Epoch { epoch: AtomicWord::new(0), waiting: Slot::new() }
    }

    fn reinit(&self) {
        self.epoch.store(0, Relaxed);
        self.waiting.reinit();
    }
}

impl<P: Platform> fmt::Debug for Epoch<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").field("epoch", &self.epoch()).field("waiting", &self.waiting).finish()
    }
}

/// An mm is freed two epochs after it died; a borrow pins its CPU.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | one load of a line that is written when mms die, one plain store to the CPU's own line |
/// | kernel thread to kernel thread | nothing |
/// | kernel thread to user | a full barrier for membarrier, one release store, one load of that line |
/// | freeing | a few RMWs; two loads of each CPU's line, one more for each borrow that ends meanwhile |
///
/// *Cannot:* what [`EpochQs`](crate::EpochQs) cannot.
///
/// Source: Fraser, "Practical lock-freedom", 2004; crossbeam-epoch's form of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EpochPinned {
    /// Whether a CPU that goes idle for long ends its borrow first.
    pub evict_at_idle: bool,
}

impl EpochPinned {
    /// With the turn: advances as far as there is something to gain, and frees what has become free.
    fn advance<P: Platform>(self, host: &impl Host<P, Self>, turn: &Turn<'_, P>) {
        let (platform, shared) = (host.platform(), host.shared());
        loop {
            let epoch = shared.epoch.load(Relaxed);
            let mut some_wait = false;
            for mm in turn.take(host) {
                // SAFETY: what waits is not freed before a collector frees it, and this one has the turn.
                let died = &host.mm_state(unsafe { mm.as_ref() }).epoch;
                if platform.outcome_of(|| noted(epoch).wrapping_sub(died.load(Relaxed)) >= 2 * NEXT) {
                    // SAFETY: no CPU that was pinned when it died is pinned there now.
                    unsafe { turn.free(host, mm) };
                } else {
                    some_wait = true;
                    // SAFETY: taken here.
                    unsafe { turn.put_back(host, mm) };
                }
            }
            if !some_wait || host.any_cpu(|pin| pin.holds_up(epoch)) {
                return;
            }
            shared.epoch.fetch_add_full(NEXT, ADVANCE);
        }
    }
}

impl<P: Platform> LazyTlb<P> for EpochPinned {
    type CpuState = Pin<P>;
    type MmState = Died<P>;
    type Shared = Epoch<P>;

    fn name(&self) -> &'static str {
        "epoch-pinned"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &Pin<P>, shared: &Epoch<P>, _mm: &MmCore<P>) {
        if P::DEBUG_VM && this.borrows() {
            platform.warn(Warning::SlotBusy);
        }
        this.0.store(noted(shared.epoch.load(Relaxed)), Relaxed.at(PIN));
    }

    #[inline]
    fn leave_lazy_tlb(&self, _platform: P, this: &Pin<P>) {
        this.0.store(0, Release.at(UNPIN));
    }

    #[inline]
    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        if !host.shared().waiting.is_empty() {
            self.collect(host);
        }
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        // SAFETY: it is freed by who this says, and only then.
        let core = unsafe { mm.as_ref() };
        // After the decrement of `count`, a full barrier.
        let (died, shared) = (host.mm_state(core), host.shared());
        host.platform().outcome_of(|| died.epoch.store(noted(shared.epoch.load(Relaxed)), Relaxed));
        // SAFETY: this is the mm that is to be freed.
        unsafe { host.shared().waiting.push(host, mm) };
        self.collect(host);
        Freeing::Later
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        host.shared().waiting.with_turn(host, |turn| self.advance(host, turn));
    }

    #[inline]
    fn evicts_at_idle(&self) -> bool {
        self.evict_at_idle
    }
}

// SAFETY: an mm is freed only two epochs after its count had reached zero. A CPU that borrows it was pinned before, and is
// unpinned only after its MMU and active_mm have left.
unsafe impl<P: Platform> KeepsMmAlive<P> for EpochPinned {}
