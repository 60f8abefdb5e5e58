//! Interval subscribers: told of some addresses only, and able to tell whether what they have looked up has been invalidated since.
//!
//! A driver looks up what the CPU's page tables have, without a lock that would keep it so, and then takes its own lock and asks whether an invalidation
//! has come in between. For that each subscriber has a number, which each invalidation of its interval sets, under the driver's lock; and the chain has one,
//! which is odd while anything that somebody is subscribed to is invalidated.
//!
//! * Idle, the chain's is even. The first invalidation that meets a subscriber makes it odd, the end of the last one that goes on makes it even again, by
//!   one more. A subscriber's is always odd.
//! * A subscriber whose number is the chain's was met by what goes on now: who wants to read waits until it is over.
//! * The tree does not change while the number is odd, so it is gone through without a lock; who comes or goes meanwhile waits for the last end.
//!
//! Source: Gunthorpe, 99cb252f5e68 (Linux 5.5), with 319561669a59 (5.18, the end is waited for with the lock held); the two passes are Hellström's
//! (2 March 2026).

use core::fmt;
use core::marker::PhantomData;
use core::ptr::{NonNull, null_mut};

use lazytlb_core::memory::{AtomicWord, Label, Labelled, Ordering::*};

use crate::chain::{Chain, INTERVALS, MmapWrite, RegisterError, UnregisterError};
use crate::kernel::{NotifierKernel, Warning, locked};
use crate::list::without_blocking;
use crate::range::{Event, Invalidation, Range, WouldBlock};
use crate::task::in_callback;
use crate::tree::{Link, Linked, Tree};

/// The last invalidation has ended, or the next one has begun behind it: who has waited for that sees what was changed.
pub const SETTLED: Label = Label::new("notifier.settled");

/// What an interval subscriber does (Linux `struct mmu_interval_notifier_ops`). It does not unwind: the invalidation would never end.
pub trait MmuIntervalNotifier<K: NotifierKernel> {
    /// Addresses of the interval are about to change. With its own lock held, the one under which it asks
    /// [`read_retry`](IntervalNode::read_retry), it calls [`Invalidating::set_seq`] and drops its translations of them. What
    /// [`set_seq`](Invalidating::set_seq) gives is what it returns, so that it cannot be left out.
    ///
    /// Context: may sleep if the invalidation [may block](Invalidation::is_blockable), and must not wait for its lock if it may not. It unsubscribes
    /// nobody.
    ///
    /// # Errors
    /// If it would have to sleep, and must not: nothing has changed then.
    fn invalidate<'a>(&self, invalidating: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock>;

    /// The second pass, where the first has asked for it ([`Invalidated::and_finish`]): all subscribers have begun by now, and what takes long is waited
    /// for. It comes once, also where another subscriber has refused. What was given to the first pass is the subscriber's again.
    ///
    /// Context: as the first.
    fn finish(&self, invalidation: Invalidation<'_>, finish: NonNull<Finish<K>>) {
        let _ = (invalidation, finish);
    }
}

/// What remembers that a second pass is to come: a subscriber's own, one for each invalidation of its that can go on at a time. Who has none left
/// does all in the first pass.
pub struct Finish<K: NotifierKernel> {
    next: K::AtomicPtr<Finish<K>>,
    node: K::AtomicPtr<IntervalNode<K>>,
}

impl<K: NotifierKernel> Default for Finish<K> {
    fn default() -> Self {
        Finish { next: AtomicWord::new(null_mut()), node: AtomicWord::new(null_mut()) }
    }
}

impl<K: NotifierKernel> fmt::Debug for Finish<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Finish")
    }
}

/// An invalidation of a subscriber's interval: what the callback must store.
#[derive(Debug)]
pub struct Invalidating<'a, K: NotifierKernel> {
    invalidation: Invalidation<'a>,
    node: &'a IntervalNode<K>,
    seq: usize,
}

impl<'a, K: NotifierKernel> Invalidating<'a, K> {
    /// What is invalidated.
    pub fn invalidation(&self) -> Invalidation<'a> {
        self.invalidation
    }

    /// From here on whoever has read before must read again (Linux `mmu_interval_set_seq`). Context: the subscriber's own lock held, until the translations
    /// are dropped.
    pub fn set_seq(self) -> Invalidated<'a, K> {
        self.node.seq.store(self.seq, Relaxed);
        Invalidated { finish: None, _invalidation: PhantomData }
    }
}

/// The callback has done what it must.
#[derive(Debug)]
#[must_use = "it is what the callback returns"]
pub struct Invalidated<'a, K: NotifierKernel> {
    finish: Option<NonNull<Finish<K>>>,
    _invalidation: PhantomData<Invalidation<'a>>,
}

impl<K: NotifierKernel> Invalidated<'_, K> {
    /// Not all is done: [`finish`](MmuIntervalNotifier::finish) is to be called when all subscribers have been told.
    ///
    /// # Safety
    /// Nobody else uses it until it is given back there, and it is there until then.
    pub unsafe fn and_finish(self, finish: NonNull<Finish<K>>) -> Self {
        Invalidated { finish: Some(finish), ..self }
    }
}

/// The place of an interval subscriber in a tree (Linux `struct mmu_interval_notifier`).
pub struct IntervalNode<K: NotifierKernel> {
    link: Link<K, IntervalNode<K>>,
    /// Of whom wait for the last end, the next one.
    deferred: K::AtomicPtr<IntervalNode<K>>,
    state: K::AtomicUsize,
    mm: K::AtomicPtr<K::Mm>,
    /// Odd.
    seq: K::AtomicUsize,
    subscriber: Subscriber<K>,
}

/// A subscriber, whom any CPU may call.
struct Subscriber<K>(NonNull<dyn MmuIntervalNotifier<K>>);

// SAFETY: a pointer. Who calls what it points to does so by the promise of `IntervalNode::new`.
unsafe impl<K: NotifierKernel> Send for Subscriber<K> {}
// SAFETY: as above.
unsafe impl<K: NotifierKernel> Sync for Subscriber<K> {}

/// No subscriber's sequence: those are odd.
const NEVER_CURRENT: usize = 0;

/// In no tree.
const OUT: usize = 0;
/// In the tree.
const IN: usize = 1;
/// Waits for the last end, to be inserted.
const COMES: usize = 2;
/// Waits for it, to be removed, and is in the tree meanwhile.
const GOES: usize = 3;

// SAFETY: it is a field.
unsafe impl<K: NotifierKernel> Linked<K> for IntervalNode<K> {
    fn link(&self) -> &Link<K, Self> {
        &self.link
    }
}

impl<K: NotifierKernel> fmt::Debug for IntervalNode<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, last) = self.link.interval();
        write!(f, "{start:#x} to {last:#x}, sequence {}", self.seq.load(Relaxed))
    }
}

impl<K: NotifierKernel> IntervalNode<K> {
    /// A subscriber's, which is in no tree yet.
    ///
    /// # Safety
    /// The subscriber is there as long as the node is in a tree. Any CPU may call it.
    pub unsafe fn new(subscriber: NonNull<dyn MmuIntervalNotifier<K>>) -> Self {
        IntervalNode {
            link: Link::default(),
            deferred: AtomicWord::new(null_mut()),
            state: AtomicWord::new(OUT),
            mm: AtomicWord::new(null_mut()),
            seq: AtomicWord::new(1),
            subscriber: Subscriber(subscriber),
        }
    }

    /// Whether what was looked up since [`read_begin`](Chain::read_begin) gave `seq` may have been invalidated: then it is looked up again. If not, what was
    /// looked up may be used until the lock is released, and translations made of it until they are invalidated.
    ///
    /// Context: the lock held under which the subscriber's callback stores its sequence, until the translation is made.
    pub fn read_retry(&self, seq: usize) -> bool {
        self.seq.load(Relaxed) != seq
    }

    /// The same without the lock: "yes" is true, "no" is not to be relied on (Linux `mmu_interval_check_retry`).
    pub fn check_retry(&self, seq: usize) -> bool {
        self.read_retry(seq)
    }

    /// What the last invalidation of its set; odd. For a debugger, a dump, or a checker.
    pub fn seq(&self) -> usize {
        self.seq.load(Relaxed)
    }

    fn subscriber(&self) -> &dyn MmuIntervalNotifier<K> {
        // SAFETY: there as long as the node is in a tree; who calls it has found it there, and it does not leave meanwhile.
        unsafe { self.subscriber.0.as_ref() }
    }
}

/// Second passes that are to come, in the order in which the first ones asked for them.
struct Finishes<'a, K: NotifierKernel> {
    first: *mut Finish<K>,
    last: Option<&'a Finish<K>>,
}

impl<K: NotifierKernel> Finishes<'_, K> {
    fn push(&mut self, finish: Option<NonNull<Finish<K>>>, node: &IntervalNode<K>) {
        let Some(pointer) = finish else { return };
        // SAFETY: the subscriber's promise: it is there, and nobody else's now.
        let finish = unsafe { pointer.as_ref() };
        finish.node.store(core::ptr::from_ref(node).cast_mut(), Relaxed);
        finish.next.store(null_mut(), Relaxed);
        match self.last {
            None => self.first = pointer.as_ptr(),
            Some(last) => last.next.store(pointer.as_ptr(), Relaxed),
        }
        self.last = Some(finish);
    }

    fn each(self, f: impl Fn(&IntervalNode<K>, NonNull<Finish<K>>)) {
        let mut next = self.first;
        while let Some(pointer) = NonNull::new(next) {
            // SAFETY: as above; it is given back by the call, and not looked at behind it.
            let finish = unsafe { pointer.as_ref() };
            next = finish.next.load(Relaxed);
            let node = NonNull::new(finish.node.load(Relaxed)).expect("it was pushed with a node");
            // SAFETY: in the tree, which does not change while its callbacks run.
            f(unsafe { node.as_ref() }, pointer);
        }
    }
}

/// How the interval subscribers of a chain stand: for a debugger, a dump, or a checker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntervalState {
    /// How many invalidations go on. With none the sequence is even, and nobody waits.
    pub active: usize,
    /// The chain's sequence: odd while something is invalidated that somebody is subscribed to.
    pub seq: usize,
    /// How many subscribers are in the tree, which stays as it is while the sequence is odd.
    pub inserted: usize,
    /// How many wait for the last end, to come or to go.
    pub deferred: usize,
}

/// The most subscribers that [`Chain::interval_state`] counts.
pub const MOST_COUNTED: usize = 4096;

/// Where a chain's sequence begins: shortly before the end of the numbers, as Linux's jiffies do, so that every test sees it wrap.
const FIRST_SEQ: usize = usize::MAX - 3;

/// The interval subscribers of a chain.
pub(crate) struct Intervals<K: NotifierKernel> {
    tree: Tree<K, IntervalNode<K>>,
    /// How many invalidations go on.
    active: K::AtomicUsize,
    /// Odd while something that somebody is subscribed to is invalidated.
    seq: K::AtomicUsize,
    /// Who waits for the last end.
    deferred: K::AtomicPtr<IntervalNode<K>>,
    queue: K::WaitQueue,
}

impl<K: NotifierKernel> Default for Intervals<K> {
    fn default() -> Self {
        Intervals {
            tree: Tree::default(),
            active: AtomicWord::new(0),
            seq: AtomicWord::new(FIRST_SEQ),
            deferred: AtomicWord::new(null_mut()),
            queue: K::new_wait_queue(),
        }
    }
}

impl<K: NotifierKernel> Intervals<K> {
    pub(crate) fn is_empty(&self) -> bool {
        self.tree.is_empty() && self.deferred.load(Relaxed).is_null()
    }

    /// The sequence, with the lock held.
    fn seq(&self) -> usize {
        self.seq.load(Relaxed)
    }

    fn is_odd(&self) -> bool {
        self.seq() & 1 != 0
    }

    /// Something is invalidated that somebody is subscribed to. Context: the lock held.
    ///
    /// With release: who waits for the last end may see this number and never the even one before it, and must see what was changed until then.
    fn make_odd(&self) {
        self.seq.store(self.seq() | 1, Release.at(SETTLED));
    }

    fn defer(&self, node: &IntervalNode<K>, state: usize) {
        node.state.store(state, Relaxed);
        node.deferred.store(self.deferred.load(Relaxed), Relaxed);
        self.deferred.store(core::ptr::from_ref(node).cast_mut(), Relaxed);
    }

    fn state(&self) -> IntervalState {
        let all = core::iter::successors(self.tree.first(0, usize::MAX), |node| self.tree.next(node, 0, usize::MAX));
        // SAFETY: who waits stays until it does not.
        let node = |at: *mut IntervalNode<K>| unsafe { at.as_ref() };
        let waiting = core::iter::successors(node(self.deferred.load(Relaxed)), |one| node(one.deferred.load(Relaxed)));
        IntervalState {
            active: self.active.load(Relaxed),
            seq: self.seq(),
            inserted: all.take(MOST_COUNTED).count(),
            deferred: waiting.take(MOST_COUNTED).count(),
        }
    }

    /// Takes a node out of those that wait.
    fn undefer(&self, node: &IntervalNode<K>) {
        let mut word = &self.deferred;
        loop {
            let Some(one) = NonNull::new(word.load(Relaxed)) else { return };
            // SAFETY: who waits stays until it does not.
            let one = unsafe { one.as_ref() };
            if core::ptr::eq(one, node) {
                return word.store(node.deferred.load(Relaxed), Relaxed);
            }
            word = &one.deferred;
        }
    }

    /// The last end has come: who waits comes and goes.
    fn settle(&self) {
        let mut next = self.deferred.load(Relaxed);
        self.deferred.store(null_mut(), Relaxed);
        while let Some(node) = NonNull::new(next) {
            // SAFETY: who waits stays until it does not, and the lock is held.
            let node = unsafe { node.as_ref() };
            next = node.deferred.load(Relaxed);
            if node.state.load(Relaxed) == COMES {
                node.state.store(IN, Relaxed);
                // SAFETY: in no tree, and it stays.
                unsafe { self.tree.insert(node) };
            } else {
                node.state.store(OUT, Relaxed);
                // SAFETY: in this tree.
                unsafe { self.tree.remove(node) };
            }
        }
    }
}

impl<K: NotifierKernel> Chain<K> {
    /// Subscribes to some addresses (Linux `mmu_interval_notifier_insert`).
    ///
    /// Context: may sleep; the mmap lock is held for writing. (Linux has a form for who holds it already and one for who does not, and takes it
    /// where nobody has subscribed to an interval before.)
    ///
    /// # Errors
    /// See [`RegisterError`].
    ///
    /// # Safety
    /// The node stays where it is until [`remove_interval`](Self::remove_interval) has returned. Until then the caller owns a reference to
    /// the mm's struct.
    pub unsafe fn insert_interval(
        &self,
        kernel: K,
        mmap: &mut impl MmapWrite<K>,
        node: &IntervalNode<K>,
        start: usize,
        length: usize,
    ) -> Result<(), RegisterError> {
        let last =
            length.checked_sub(1).and_then(|length| start.checked_add(length)).ok_or(RegisterError::NoInterval)?;
        if !self.has_intervals() {
            // What goes on now knows nothing of intervals, and does not count itself.
            self.exclusively(kernel, mmap, || {
                self.list.subscribe(INTERVALS);
                Ok(())
            })?;
        }
        if mmap.mm_users() == 0 {
            return Err(RegisterError::NoUsers);
        }
        let mm = core::ptr::from_ref(mmap.mm()).cast_mut();
        let intervals = &self.intervals;
        locked(kernel, &self.list.lock, || {
            if !node.mm.load(Relaxed).is_null() {
                return Err(RegisterError::Registered);
            }
            node.mm.store(mm, Relaxed);
            node.link.set(start, last);
            if intervals.active.load(Relaxed) > 0 {
                // It may be hit by what goes on, for all that is known: a reader waits for the end.
                if intervals.is_odd() {
                    intervals.defer(node, COMES);
                } else {
                    intervals.make_odd();
                    node.state.store(IN, Relaxed);
                    // SAFETY: in no tree, and it stays.
                    unsafe { intervals.tree.insert(node) };
                }
                node.seq.store(intervals.seq(), Relaxed);
            } else {
                // Odd, and none that the chain will have soon.
                node.seq.store(intervals.seq().wrapping_sub(1), Relaxed);
                node.state.store(IN, Relaxed);
                // SAFETY: as above.
                unsafe { intervals.tree.insert(node) };
            }
            Ok(())
        })
    }

    /// Unsubscribes, and waits until no callback runs (Linux `mmu_interval_notifier_remove`).
    ///
    /// Context: may sleep; no lock held that the callback takes; not in a callback, nor between the start and the end of an invalidation of the caller's, of
    /// whatever address space: two who did so could wait for each other.
    ///
    /// # Errors
    /// See [`UnregisterError`].
    ///
    /// # Safety
    /// Nobody else unsubscribes this node at the same time, and `mm` is the chain's.
    pub unsafe fn remove_interval(&self, kernel: K, mm: &K::Mm, node: &IntervalNode<K>) -> Result<(), UnregisterError> {
        if kernel.task().is_in_callback() {
            return Err(UnregisterError::InCallback);
        }
        if kernel.task().is_in_pair() {
            return Err(UnregisterError::InPair);
        }
        kernel.might_sleep();
        if !core::ptr::eq(node.mm.load(Relaxed), mm) {
            return Err(UnregisterError::NotRegistered);
        }
        let intervals = &self.intervals;
        let waits_for = locked(kernel, &self.list.lock, || {
            if !intervals.is_odd() {
                // Nobody goes through the tree: whoever had met this one would have made the number odd.
                node.state.store(OUT, Relaxed);
                // SAFETY: in this tree, as it is of this mm and waits for nothing.
                unsafe { intervals.tree.remove(node) };
                return None;
            }
            if node.state.load(Relaxed) == COMES {
                node.state.store(OUT, Relaxed);
                intervals.undefer(node);
                return None;
            }
            intervals.defer(node, GOES);
            Some(intervals.seq())
        });
        if let Some(seq) = waits_for {
            // With the lock: the number changes before the last end has done with those who wait (319561669a59).
            kernel.wait_event(&intervals.queue, || {
                locked(kernel, &self.list.lock, || (intervals.seq() != seq).then_some(()))
            });
        }
        node.mm.store(null_mut(), Relaxed);
        Ok(())
    }

    /// A subscriber begins to look something up (Linux `mmu_interval_read_begin`). It waits until no invalidation goes on that its callback was called for,
    /// and others that overlap with that.
    ///
    /// Returns what [`read_retry`](IntervalNode::read_retry) wants; it may be out of date already, and the caller decides how often to begin anew.
    ///
    /// Context: may sleep; no lock held that the callback takes; not in a callback, nor between the start and the end of an invalidation of the caller's: there it
    /// could wait for itself, is warned of, does not wait, and what it gives is never current.
    pub fn read_begin(&self, kernel: K, node: &IntervalNode<K>) -> usize {
        kernel.might_sleep();
        if kernel.task().is_in_callback() || kernel.task().is_in_pair() {
            kernel.warn(Warning::WaitsForItself);
            return NEVER_CURRENT;
        }
        let intervals = &self.intervals;
        let (seq, goes_on) = locked(kernel, &self.list.lock, || {
            let seq = node.seq.load(Relaxed);
            (seq, seq == intervals.seq())
        });
        if goes_on {
            // Without the lock: nothing is freed on the word of this. (Linux reads it plainly; its readers take the page table's lock next.)
            kernel.wait_event(&intervals.queue, || (intervals.seq.load(Acquire.at(SETTLED)) != seq).then_some(()));
        }
        seq
    }

    /// How interval subscribers stand. No more than [`MOST_COUNTED`] are counted, so that it ends whatever has become of them.
    ///
    /// # Safety
    /// Nobody comes, goes, or invalidates meanwhile: all others have stopped, or wait for the lock that the caller holds.
    pub unsafe fn interval_state(&self) -> IntervalState {
        self.intervals.state()
    }

    /// The interval half of a start.
    pub(crate) fn start_intervals(&self, kernel: K, invalidation: Invalidation<'_>) -> Result<(), WouldBlock> {
        let intervals = &self.intervals;
        let range = invalidation.range();
        let (first, seq) = locked(kernel, &self.list.lock, || {
            intervals.active.store(intervals.active.load(Relaxed) + 1, Relaxed);
            let first = intervals.tree.first(range.start(), range.last());
            if first.is_some() {
                intervals.make_odd();
            }
            (first, intervals.seq())
        });
        let told = self.tell_intervals(kernel, first, seq, invalidation);
        if told.is_err() {
            self.end_intervals(kernel);
        }
        told
    }

    /// Tells those whose interval is met, from this one on. The tree stays as it is.
    fn tell_intervals(
        &self,
        kernel: K,
        first: Option<&IntervalNode<K>>,
        seq: usize,
        invalidation: Invalidation<'_>,
    ) -> Result<(), WouldBlock> {
        let range = invalidation.range();
        let mut told = Ok(());
        let mut finishes = Finishes { first: null_mut(), last: None };
        let mut next = first;
        while let Some(node) = next {
            let tell = || node.subscriber().invalidate(Invalidating { invalidation, node, seq });
            match in_callback(kernel, || without_blocking(kernel, invalidation.is_blockable(), tell)) {
                Ok(Invalidated { finish, .. }) => finishes.push(finish, node),
                Err(WouldBlock) if invalidation.is_blockable() => kernel.warn(Warning::RefusedBlockable),
                Err(WouldBlock) => {
                    told = Err(WouldBlock);
                    break;
                }
            }
            next = self.intervals.tree.next(node, range.start(), range.last());
        }
        finishes.each(|node, finish| {
            let finish = || node.subscriber().finish(invalidation, finish);
            in_callback(kernel, || without_blocking(kernel, invalidation.is_blockable(), finish));
        });
        told
    }

    /// The interval half of an end.
    pub(crate) fn end_intervals(&self, kernel: K) {
        let intervals = &self.intervals;
        let settled = locked(kernel, &self.list.lock, || {
            let Some(active) = intervals.active.load(Relaxed).checked_sub(1) else {
                kernel.warn(Warning::EndWithoutStart);
                return false;
            };
            intervals.active.store(active, Relaxed);
            if active > 0 || !intervals.is_odd() {
                return false;
            }
            intervals.seq.store(intervals.seq().wrapping_add(1), Release.at(SETTLED));
            intervals.settle();
            true
        });
        if settled {
            kernel.wake_up_all(&intervals.queue);
        }
    }

    /// All interval subscribers are told that the address space goes. They stay subscribed.
    pub(crate) fn release_intervals(&self, kernel: K) {
        if self.has_intervals() {
            let range = Range::all(Event::Release);
            let told = self.start_intervals(kernel, Invalidation::new(&range, true));
            debug_assert!(told.is_ok(), "a refusal is warned of");
            self.end_intervals(kernel);
        }
    }
}
