//! [`Waiting`]: mms that nobody references any more and some CPU may still borrow.
//!
//! Strategies that free later share one shape. Whoever drops the last reference *pushes* the mm. From time to time
//! somebody *collects*: looks at what waits, frees what need not wait any more, and leaves the rest. Anybody may
//! collect (the one who pushed, a CPU whose borrow has just ended, a worker), but one at a time: whoever comes while
//! another collects leaves word, and that one looks once more. So no look is lost, and nobody waits for anybody.
//!
//! The mms are linked through themselves ([`Link`]): nothing is allocated.
//!
//! Who has the turn is not preempted: all that waits would wait for a task that does not run, of whatever priority. What it
//! finds to be over is freed after the turn, with preemption as it was, for freeing takes time and may take locks that sleep.
//!
//! # Nobody is forgotten
//!
//! | pair | the CPU that leaves | the one that frees |
//! | --- | --- | --- |
//! | `waiting.push` | borrow ends; full barrier ([`mmdrop_lazy_tlb`](crate::LazyTlb::mmdrop_lazy_tlb)); reads how many wait | counts the mm (`waiting.push`, full); reads who borrows |
//! | `waiting.turn` | asks for a turn (full), is told that another collects | is told that it must look again (`waiting.turn_again`, full) |
//!
//! Either the CPU sees that something waits, or the other sees that the borrow has ended. A CPU that sees nothing waiting
//! has paid one load of a word that is written only when mms die.

use core::cell::Cell;
use core::fmt;
use core::ptr::null_mut;

use crate::lazy_tlb::{Host, LazyTlb};
use crate::memory::{AtomicInt, AtomicWord, Label, Labelled, Ordering::*};
use crate::mm::{MmCore, MmPtr, Slot};
use crate::platform::{Frame, Platform, PreemptGuard};

/// The RMW that counts an mm as waiting. Full barrier: the count is seen, or the end of the borrow is.
pub const PUSH: Label = Label::new("waiting.push");
/// The RMWs that begin and end a turn at collecting. Full barriers: what was done before a turn was asked for is seen by
/// the turn that answers it.
pub const TURN: Label = Label::new("waiting.turn");
/// The RMW that begins the look which somebody asked for meanwhile. Full barrier: the exchange that would have ended the turn
/// has failed and ordered nothing, and this look must see what the askers did before they asked.
pub const TURN_AGAIN: Label = Label::new("waiting.turn_again");

/// An mm is put on a [`List`] (release): what was done to it before is seen by whoever finds it there.
pub const LIST_PUSH: Label = Label::new("list.push");
/// Who looks at a [`List`] or takes what is on it (acquire). Pairs with [`LIST_PUSH`].
pub const LIST_TAKE: Label = Label::new("list.take");

/// In each mm: the next one that waits.
pub struct Link<P: Platform> {
    next: P::AtomicPtr<MmCore<P>>,
}

impl<P: Platform> Link<P> {
    /// Of an mm that does not wait, from a ready word, null; `const`, for statics.
    pub const fn from_parts(next: P::AtomicPtr<MmCore<P>>) -> Self {
        Link { next }
    }
}

impl<P: Platform> Slot for Link<P> {
    fn new() -> Self {
        Link { next: AtomicWord::new(null_mut()) }
    }

    fn reinit(&self) {
        self.next.store(null_mut(), Relaxed);
    }
}

impl<P: Platform> fmt::Debug for Link<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link { .. }")
    }
}

/// A strategy's state in an mm that can wait.
pub trait Linked<P: Platform>: Slot {
    /// Its link, for [`List`] alone.
    fn link(&self) -> &Link<P>;
}

impl<P: Platform> Linked<P> for Link<P> {
    fn link(&self) -> &Link<P> {
        self
    }
}

/// A list of mms, linked through themselves. Anybody may push; whoever takes, takes all.
///
/// Every mm on it is alive: that is the contract of [`push`](List::push).
pub struct List<P: Platform> {
    first: P::AtomicPtr<MmCore<P>>,
}

impl<P: Platform> List<P> {
    /// An empty list from a ready word, null; `const`, for statics.
    pub const fn from_parts(first: P::AtomicPtr<MmCore<P>>) -> Self {
        List { first }
    }

    /// Whether there is nothing in it. Relaxed.
    pub fn is_empty(&self) -> bool {
        self.first.load(Relaxed).is_null()
    }

    /// Puts an mm on the list. Release, for whoever takes it. Context: any.
    ///
    /// # Safety
    /// The mm is of the host's machine and alive, and is not freed before it was taken off again. It is on no list.
    pub unsafe fn push<S>(&self, host: &impl Host<P, S>, mm: MmPtr<P>)
    where
        S: LazyTlb<P, MmState: Linked<P>>,
    {
        // SAFETY: alive, as the caller says; it may be gone as soon as the exchange has put it on the list.
        let link = host.mm_state(unsafe { mm.as_ref() }).link();
        let platform = host.platform();
        platform.outcome_of(|| {
            platform.spin_until(|| {
                let first = self.first.load(Relaxed);
                link.next.store(first, Relaxed);
                self.first.compare_exchange(first, mm.as_ptr(), Release.at(LIST_PUSH), Relaxed).ok()
            });
        });
    }

    /// Whether `holds` for any that is on it. Context: that of `holds`.
    ///
    /// # Safety
    /// Nobody but the caller takes from this list.
    pub unsafe fn any<S>(&self, host: &impl Host<P, S>, mut holds: impl FnMut(&MmCore<P>) -> bool) -> bool
    where
        S: LazyTlb<P, MmState: Linked<P>>,
    {
        let mut next = MmPtr::new(self.first.load(Acquire.at(LIST_TAKE)));
        while let Some(mm) = next {
            // SAFETY: what is on the list is alive until it was taken off, which only the caller does.
            let mm = unsafe { mm.as_ref() };
            if holds(mm) {
                return true;
            }
            next = MmPtr::new(host.mm_state(mm).link().next.load(Relaxed));
        }
        false
    }

    /// Takes all that is on it, the last one pushed first. Acquire. Who drops the iterator early loses the rest.
    pub fn take<'h, S, H>(&self, host: &'h H) -> impl Iterator<Item = MmPtr<P>> + use<'h, P, S, H>
    where
        S: LazyTlb<P, MmState: Linked<P>>,
        H: Host<P, S>,
    {
        let first = match host.platform().outcome_of(|| self.is_empty()) {
            true => None,
            false => MmPtr::new(self.first.swap(null_mut(), Acquire.at(LIST_TAKE))),
        };
        // SAFETY: what was on the list is alive until it was taken off, which it is when the iterator returns it.
        unsafe { linked(host, first) }
    }
}

impl<P: Platform> Slot for List<P> {
    fn new() -> Self {
        List { first: AtomicWord::new(null_mut()) }
    }

    fn reinit(&self) {
        self.first.store(null_mut(), Relaxed);
    }
}

impl<P: Platform> fmt::Debug for List<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("List").field(&self.first.load(Relaxed)).finish()
    }
}

/// An mm and all that are linked to it, the first of them first.
///
/// # Safety
/// Each is alive until it is returned, and on no list.
unsafe fn linked<'h, P, S, H>(host: &'h H, first: Option<MmPtr<P>>) -> impl Iterator<Item = MmPtr<P>> + use<'h, P, S, H>
where
    P: Platform,
    S: LazyTlb<P, MmState: Linked<P>>,
    H: Host<P, S>,
{
    let mut next = first;
    core::iter::from_fn(move || {
        let mm = next?;
        // SAFETY: the caller's promise.
        next = MmPtr::new(host.mm_state(unsafe { mm.as_ref() }).link().next.load(Relaxed));
        Some(mm)
    })
}

/// What waits, for the machine as a whole.
pub struct Waiting<P: Platform> {
    /// How many wait, wherever they are.
    count: P::AtomicUsize,
    /// Those that were pushed and that no turn has taken.
    pushed: List<P>,
    /// Who has asked for a turn: [`NOBODY`], [`ONE`], [`MORE`].
    asked: P::AtomicUsize,
}

/// Nobody has the turn.
const NOBODY: usize = 0;
/// Somebody has it.
const ONE: usize = 1;
/// Somebody has it and must look again. How many have asked is not counted: who is interrupted for long in its turn could
/// be asked any number of times.
const MORE: usize = 2;

impl<P: Platform> Waiting<P> {
    /// Nothing waits, from ready words, null and zero; `const`, for statics.
    pub const fn from_parts(count: P::AtomicUsize, pushed: List<P>, asked: P::AtomicUsize) -> Self {
        Waiting { count, pushed, asked }
    }

    /// How many wait. Relaxed.
    #[inline]
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether nothing waits: one relaxed load. Asked after a full barrier that follows the end of a borrow, `true` means
    /// that whoever frees will see that end by itself.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `mm` waits from now on, and may be freed by another before this returns. Full barrier.
    ///
    /// Context: any.
    ///
    /// # Safety
    /// `mm` is of the host's machine, its `count` is zero, and the caller was asked to free it
    /// ([`LazyTlb::cleanup_lazy_tlbs`]).
    pub unsafe fn push<S>(&self, host: &impl Host<P, S>, mm: MmPtr<P>)
    where
        S: LazyTlb<P, MmState: Linked<P>>,
    {
        host.platform().outcome_of(|| {
            self.count.fetch_add_full(1, PUSH);
        });
        // SAFETY: nobody but the collector frees it, after taking it off the list.
        unsafe { self.pushed.push(host, mm) };
    }

    /// Gives `collector` the turn, and again as long as somebody has asked before it was done; then frees what it has let go.
    /// If another has the turn, that one looks again instead.
    ///
    /// Context: that of [`Platform::free_mm`]. The collector runs with preemption off. What it learns in its turn it leaves there:
    /// in memory, or with the turn.
    pub fn with_turn<S>(&self, host: &impl Host<P, S>, collector: impl Fn(&Turn<'_, P>))
    where
        S: LazyTlb<P, MmState: Linked<P>>,
    {
        let platform = host.platform();
        let _frame = Frame::enter(platform, "collect");
        let over = platform.outcome_of(|| self.take_turns(platform, collector));
        // SAFETY: what turns have let go is on no other list, and no CPU borrows it.
        unsafe { linked(host, over) }.for_each(|mm| unsafe { host.free_mm(mm) });
    }

    /// Takes turns until nobody asks for another, and says what they have let go: the first of them.
    fn take_turns(&self, platform: P, collector: impl Fn(&Turn<'_, P>)) -> Option<MmPtr<P>> {
        let _pinned = PreemptGuard::new(platform);
        let is_free = || self.asked.compare_exchange_full(NOBODY, ONE, TURN).is_ok();
        let has_passed = || self.asked.swap_full(MORE, TURN) != NOBODY;
        if !platform.outcome_of(is_free) && platform.outcome_of(has_passed) {
            return None;
        }
        let turn = Turn { waiting: self, over: Cell::new(None) };
        loop {
            let frame = turn.begins(platform, "turn");
            collector(&turn);
            drop(frame);
            if self.asked.compare_exchange_full(ONE, NOBODY, TURN).is_ok() {
                return turn.over.get();
            }
            self.asked.swap_full(ONE, TURN_AGAIN);
        }
    }

    /// Frees all that waits, for a strategy whose mms wait for nothing but a context in which they can be freed.
    ///
    /// Context: that of [`Platform::free_mm`].
    ///
    /// # Safety
    /// No CPU borrows any of them.
    pub unsafe fn free_all<S>(&self, host: &impl Host<P, S>)
    where
        S: LazyTlb<P, MmState: Linked<P>>,
    {
        let _frame = Frame::enter(host.platform(), "collect");
        for mm in self.pushed.take(host) {
            self.count_out(host.platform());
            // SAFETY: the strategy was asked to free it later, and this is the once; the rest is the caller's.
            unsafe { host.free_mm(mm) };
        }
    }

    fn count_out(&self, platform: P) {
        platform.outcome_of(|| {
            self.count.fetch_sub(1, Relaxed);
        });
    }
}

impl<P: Platform> Slot for Waiting<P> {
    fn new() -> Self {
        Waiting { count: AtomicWord::new(0), pushed: Slot::new(), asked: AtomicWord::new(0) }
    }

    fn reinit(&self) {
        self.count.store(0, Relaxed);
        self.pushed.reinit();
        self.asked.store(0, Relaxed);
    }
}

impl<P: Platform> fmt::Debug for Waiting<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("count", &self.len()).field("pushed", &self.pushed).finish_non_exhaustive()
    }
}

/// The right to say what is freed: one collector at a time has it.
#[derive(Debug)]
pub struct Turn<'a, P: Platform> {
    waiting: &'a Waiting<P>,
    /// The mm that was let go last; each is linked to the one before.
    over: Cell<Option<MmPtr<P>>>,
}

impl<P: Platform> Turn<'_, P> {
    /// A round of the collector's begins: it knows nothing from before but what it has let go.
    pub fn begins(&self, platform: P, round: &'static str) -> Frame<P> {
        let frame = Frame::enter(platform, round);
        platform.outcome_of(|| self.over.get());
        frame
    }

    /// Takes what was pushed. Each goes to a list of the collector's, back by [`put_back`](Self::put_back), or to
    /// [`free`](Self::free).
    pub fn take<'h, S, H>(&self, host: &'h H) -> impl Iterator<Item = MmPtr<P>> + use<'h, P, S, H>
    where
        S: LazyTlb<P, MmState: Linked<P>>,
        H: Host<P, S>,
    {
        self.waiting.pushed.take(host)
    }

    /// It must go on waiting.
    ///
    /// # Safety
    /// `mm` is from [`take`](Self::take) of this turn.
    pub unsafe fn put_back<S>(&self, host: &impl Host<P, S>, mm: MmPtr<P>)
    where
        S: LazyTlb<P, MmState: Linked<P>>,
    {
        // SAFETY: it is on no list, and nobody but a collector frees it.
        unsafe { self.waiting.pushed.push(host, mm) };
    }

    /// It need not wait any more: it is freed when the turn is over.
    ///
    /// # Safety
    /// `mm` was taken and is on no list. No CPU borrows it.
    pub unsafe fn free<S>(&self, host: &impl Host<P, S>, mm: MmPtr<P>)
    where
        S: LazyTlb<P, MmState: Linked<P>>,
    {
        self.waiting.count_out(host.platform());
        // SAFETY: it is alive until it is freed, which is when the turn is over.
        let link = host.mm_state(unsafe { mm.as_ref() }).link();
        let before = self.over.replace(Some(mm));
        link.next.store(before.map_or(null_mut(), MmPtr::as_ptr), Relaxed);
    }
}
