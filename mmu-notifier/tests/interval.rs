//! Interval subscribers: sequences, who comes and goes meanwhile, two passes. C24 to C35 of the conformance suite.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread;

use lazytlb_mmu_notifier::{
    Event, Finish, IntervalNode, IntervalState, Invalidated, Invalidating, Invalidation, MmuIntervalNotifier, Range,
    RangeGuard, RegisterError, UnregisterError, Warning, WouldBlock,
};
use lazytlb_toy_notifier::{ByHazards, Log, Recorder, Toy, ToyMm, refusing, sleep, warnings};

type Mm = ToyMm<ByHazards>;
type K = Toy<ByHazards>;

fn kernel() -> K {
    Toy::new()
}

/// A subscriber that writes down what it is told.
struct Interval {
    name: &'static str,
    log: &'static Log,
    /// It refuses what must not block.
    refuses: bool,
    /// It has this for a second pass.
    finish: Option<Finish<K>>,
}

impl MmuIntervalNotifier<K> for Interval {
    fn invalidate<'a>(&self, invalidating: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock> {
        let invalidation = invalidating.invalidation();
        if invalidation.is_blockable() {
            sleep();
        } else if self.refuses {
            self.log.push(format!("{}:refuses", self.name));
            return Err(WouldBlock);
        }
        self.log.push(format!("{}:{:?}", self.name, invalidation.range().event()));
        let invalidated = invalidating.set_seq();
        match &self.finish {
            // SAFETY: it is there, and one invalidation goes on at a time here.
            Some(finish) => Ok(unsafe { invalidated.and_finish(NonNull::from(finish)) }),
            None => Ok(invalidated),
        }
    }

    fn finish(&self, _: Invalidation<'_>, finish: NonNull<Finish<K>>) {
        assert!(self.finish.as_ref().is_some_and(|own| std::ptr::eq(own, finish.as_ptr())));
        self.log.push(format!("{}:finish", self.name));
    }
}

/// Subscribers stay for ever.
struct Subscribed {
    mm: &'static Mm,
    node: &'static IntervalNode<K>,
}

impl Subscribed {
    fn new(mm: &'static Mm, interval: Interval, addrs: std::ops::Range<usize>) -> Self {
        let one = Subscribed::idle(mm, interval);
        one.insert(addrs.start, addrs.end - addrs.start).unwrap();
        one
    }

    fn idle(mm: &'static Mm, interval: Interval) -> Self {
        let interval: &'static Interval = Box::leak(Box::new(interval));
        // SAFETY: it stays, and is made of what threads can share.
        let node = Box::leak(Box::new(unsafe { IntervalNode::new(NonNull::from(interval)) }));
        Subscribed { mm, node }
    }

    fn insert(&self, start: usize, length: usize) -> Result<(), RegisterError> {
        // SAFETY: node and mm stay.
        unsafe { self.mm.chain.insert_interval(kernel(), &mut self.mm.mmap_write_lock(), self.node, start, length) }
    }

    fn remove(&self) -> Result<(), UnregisterError> {
        // SAFETY: nobody else does.
        unsafe { self.mm.chain.remove_interval(kernel(), self.mm, self.node) }
    }

    /// A task does that which invalidates nothing.
    fn remove_elsewhere(&self) -> Result<(), UnregisterError> {
        thread::scope(|scope| scope.spawn(|| self.remove()).join().unwrap())
    }

    fn read_begin(&self) -> usize {
        self.mm.chain.read_begin(kernel(), self.node)
    }
}

fn mm() -> &'static Mm {
    Box::leak(Box::new(Mm::new()))
}

fn state_of(mm: &Mm) -> IntervalState {
    // SAFETY: one thread at a time, where this is asked.
    unsafe { mm.chain.interval_state() }
}

fn named(name: &'static str, log: &'static Log) -> Interval {
    Interval { name, log, refuses: false, finish: None }
}

fn range(addrs: std::ops::Range<usize>) -> Range {
    Range::new(addrs, Event::Clear).unwrap()
}

fn start<'a>(mm: &'static Mm, range: &'a Range) -> RangeGuard<'a, K> {
    RangeGuard::start(kernel(), mm, range)
}

#[test]
fn who_overlaps_is_told_in_order() {
    let (mm, log) = (mm(), <&Log>::default());
    let all = [
        Subscribed::new(mm, named("b", log), 20..30),
        Subscribed::new(mm, named("a", log), 10..21),
        Subscribed::new(mm, named("c", log), 30..40),
    ];
    for (addrs, told) in
        [(0..10, ""), (9..11, "a:Clear"), (20..21, "a:Clear b:Clear"), (29..31, "b:Clear c:Clear"), (40..99, "")]
    {
        drop(start(mm, &range(addrs)));
        assert_eq!(log.take(), told);
    }
    all.iter().for_each(|one| one.remove().unwrap());
    mm.chain.destroy(kernel());
    assert_eq!(warnings(), []);
}

#[test]
fn c13_a_reader_begins_anew_if_it_was_met_and_only_then() {
    let (mm, log) = (mm(), <&Log>::default());
    let one = Subscribed::new(mm, named("a", log), 10..20);
    let seq = one.read_begin();
    assert!(!one.node.read_retry(seq), "nothing has come");
    drop(start(mm, &range(30..40)));
    assert!(!one.node.read_retry(seq), "nothing of this interval");
    drop(start(mm, &range(15..16)));
    assert!(one.node.read_retry(seq) && one.node.check_retry(seq), "all of it while this one was on its way");
    let seq = one.read_begin();
    assert!(!one.node.read_retry(seq));
    one.remove().unwrap();
}

#[test]
fn c32_the_sequence_wraps() {
    let (mm, log) = (mm(), <&Log>::default());
    let first_seq = state_of(mm).seq;
    let one = Subscribed::new(mm, named("a", log), 10..20);
    for wraps in [false, true, true, true] {
        let seq = one.read_begin();
        assert!(!one.node.read_retry(seq));
        drop(start(mm, &range(15..16)));
        assert!(one.node.read_retry(seq), "it is told of each");
        let state = state_of(mm);
        assert_eq!(state.seq & 1, 0);
        assert_eq!(one.node.seq() & 1, 1);
        assert_eq!(state.seq < first_seq, wraps, "the end of the numbers is near enough for tests");
    }
    one.remove().unwrap();
    assert_eq!(state_of(mm).inserted, 0);
}

/// A driver that looks something up in its callback.
#[test]
fn who_reads_in_a_callback_is_warned_of_and_never_current() {
    struct Reads(std::sync::OnceLock<(&'static Mm, &'static IntervalNode<K>)>);
    impl MmuIntervalNotifier<K> for Reads {
        fn invalidate<'a>(&self, invalidating: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock> {
            let invalidated = invalidating.set_seq();
            let (mm, node) = self.0.get().unwrap();
            assert!(node.read_retry(mm.chain.read_begin(kernel(), node)));
            Ok(invalidated)
        }
    }
    let mm = mm();
    let reads: &'static Reads = Box::leak(Box::new(Reads(std::sync::OnceLock::new())));
    // SAFETY: it stays.
    let node: &'static _ = Box::leak(Box::new(unsafe { IntervalNode::new(NonNull::from(reads)) }));
    assert!(reads.0.set((mm, node)).is_ok());
    let one = Subscribed { mm, node };
    one.insert(10, 10).unwrap();
    drop(start(mm, &range(10..11)));
    assert_eq!(warnings(), [Warning::WaitsForItself]);
    one.remove().unwrap();
}

#[test]
fn nobody_waits_for_an_invalidation_of_its_own() {
    let (mm, log) = (mm(), <&Log>::default());
    let one = Subscribed::new(mm, named("a", log), 10..20);
    // Another address space's is as bad: who invalidates this one may wait for that.
    let (other, range) = (self::mm(), range(10..11));
    let elsewhere = Subscribed::new(other, named("b", log), 10..20);
    for mm in [mm, other] {
        let guard = start(mm, &range);
        assert!(one.node.read_retry(one.read_begin()));
        assert_eq!(warnings(), [Warning::WaitsForItself]);
        assert_eq!(one.remove(), Err(UnregisterError::InPair));
        drop(guard);
        assert!(!one.node.read_retry(one.read_begin()), "it is subscribed still");
    }
    [one, elsewhere].iter().for_each(|one| one.remove().unwrap());
    assert_eq!(warnings(), []);
}

#[test]
fn how_intervals_stand() {
    let (mm, log) = (mm(), <&Log>::default());
    let state = || {
        let IntervalState { active, seq, inserted, deferred } = state_of(mm);
        (active, seq & 1, inserted, deferred)
    };
    let one = Subscribed::new(mm, named("a", log), 10..20);
    assert_eq!(state(), (0, 0, 1, 0));
    let (elsewhere, here) = (range(30..40), range(10..11));
    let guard = start(mm, &elsewhere);
    assert_eq!(state(), (1, 0, 1, 0), "nobody was met");
    let inner = start(mm, &here);
    assert_eq!(state(), (2, 1, 1, 0));
    let late = Subscribed::new(mm, named("b", log), 50..60);
    assert_eq!(state(), (2, 1, 1, 1));
    drop(inner);
    assert_eq!(state(), (1, 1, 1, 1));
    drop(guard);
    assert_eq!(state(), (0, 0, 2, 0));
    [one, late].iter().for_each(|one| one.remove().unwrap());
    assert_eq!(state(), (0, 0, 0, 0));
}

#[test]
fn a_reader_waits_for_what_has_met_it() {
    let (mm, log) = (mm(), <&Log>::default());
    let one = Subscribed::new(mm, named("a", log), 10..20);
    let (range, over) = (range(10..11), AtomicBool::new(false));
    let guard = start(mm, &range);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let seq = one.read_begin();
            assert!(over.load(SeqCst), "it was let through before the end");
            assert!(!one.node.read_retry(seq));
        });
        thread::yield_now();
        over.store(true, SeqCst);
        drop(guard);
        reader.join().unwrap();
    });
    one.remove().unwrap();
}

#[test]
fn c24_what_the_list_refuses_leaves_no_interval_begun() {
    let (mm, log) = (mm(), <&Log>::default());
    let one = Subscribed::new(mm, named("a", log), 10..20);
    let refuses = Recorder { refuses: true, ..Recorder::new("l", log) };
    let node = refusing(&refuses);
    // SAFETY: unsubscribed below.
    unsafe { mm.chain.register(kernel(), &mut mm.mmap_write_lock(), &node) }.unwrap();
    let range = range(10..11);
    assert!(RangeGuard::try_start(kernel(), mm, &range).is_err());
    assert_eq!(log.take(), "a:Clear l:refuses");
    assert_eq!(state_of(mm).active, 0);
    let seq = one.read_begin();
    assert!(!one.node.read_retry(seq));
    // SAFETY: nobody else does.
    unsafe { mm.chain.unregister(kernel(), mm, &node) }.unwrap();
    one.remove().unwrap();
}

#[test]
fn c25_who_has_begun_finishes_though_another_refuses() {
    let (mm, log) = (mm(), <&Log>::default());
    let with_finish = |name| Interval { finish: Some(Finish::default()), ..named(name, log) };
    let all = [
        Subscribed::new(mm, with_finish("a"), 10..20),
        Subscribed::new(mm, with_finish("b"), 11..20),
        Subscribed::new(mm, Interval { refuses: true, ..named("c", log) }, 12..20),
        Subscribed::new(mm, with_finish("d"), 13..20),
    ];
    let range = range(10..20);
    assert!(RangeGuard::try_start(kernel(), mm, &range).is_err());
    assert_eq!(log.take(), "a:Clear b:Clear c:refuses a:finish b:finish");
    drop(start(mm, &range));
    assert_eq!(log.take(), "a:Clear b:Clear c:Clear d:Clear a:finish b:finish d:finish", "C33: both passes, in order");
    all.iter().for_each(|one| one.remove().unwrap());
    assert_eq!(warnings(), []);
}

/// A subscriber with one place for a second pass, and another invalidation that begins between its passes.
#[test]
fn c33_who_has_no_place_for_a_second_pass_does_all_in_the_first() {
    struct One {
        log: &'static Log,
        finish: Finish<K>,
        is_free: AtomicBool,
    }
    impl MmuIntervalNotifier<K> for One {
        fn invalidate<'a>(&self, invalidating: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock> {
            let invalidated = invalidating.set_seq();
            if self.is_free.swap(false, SeqCst) {
                self.log.push("one:first".into());
                // SAFETY: it is there, and given back in the second pass.
                return Ok(unsafe { invalidated.and_finish(NonNull::from(&self.finish)) });
            }
            self.log.push("one:all".into());
            Ok(invalidated)
        }
        fn finish(&self, _: Invalidation<'_>, _: NonNull<Finish<K>>) {
            self.log.push("one:second".into());
            assert!(!self.is_free.swap(true, SeqCst), "it was taken");
        }
    }

    /// Told behind it, once, it waits for another task that invalidates the same.
    struct Between(&'static Mm, AtomicBool);
    impl MmuIntervalNotifier<K> for Between {
        fn invalidate<'a>(&self, invalidating: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock> {
            if !self.1.swap(true, SeqCst) {
                thread::scope(|scope| scope.spawn(|| drop(start(self.0, &range(15..16)))).join().unwrap());
            }
            Ok(invalidating.set_seq())
        }
    }

    let (mm, log) = (mm(), <&Log>::default());
    let one: &'static One = Box::leak(Box::new(One { log, finish: Finish::default(), is_free: AtomicBool::new(true) }));
    let between: &'static Between = Box::leak(Box::new(Between(mm, AtomicBool::new(false))));
    let all: [NonNull<dyn MmuIntervalNotifier<K>>; 2] = [NonNull::from(one), NonNull::from(between)];
    // SAFETY: they stay, and are made of what threads can share.
    let all = all.map(|one| Subscribed { mm, node: Box::leak(Box::new(unsafe { IntervalNode::new(one) })) });
    all.iter().zip([10, 11]).for_each(|(one, first)| one.insert(first, 10).unwrap());
    drop(start(mm, &range(15..16)));
    assert_eq!(log.take(), "one:first one:all one:second");
    drop(start(mm, &range(15..16)));
    assert_eq!(log.take(), "one:first one:second");
    all.iter().for_each(|one| one.remove().unwrap());
}

#[test]
fn c26_who_refuses_what_may_block_is_warned_of() {
    struct Never;
    impl MmuIntervalNotifier<K> for Never {
        fn invalidate<'a>(&self, _: Invalidating<'a, K>) -> Result<Invalidated<'a, K>, WouldBlock> {
            Err(WouldBlock)
        }
    }
    let mm = mm();
    // SAFETY: a constant.
    let node = unsafe { IntervalNode::new(NonNull::from(&Never)) };
    // SAFETY: removed below.
    unsafe { mm.chain.insert_interval(kernel(), &mut mm.mmap_write_lock(), &node, 1, 1) }.unwrap();
    drop(start(mm, &range(1..2)));
    assert_eq!(warnings(), [Warning::RefusedBlockable]);
    // SAFETY: nobody else does.
    unsafe { mm.chain.remove_interval(kernel(), mm, &node) }.unwrap();
}

#[test]
fn c27_who_comes_in_the_middle_is_presumed_hit() {
    let (mm, log) = (mm(), <&Log>::default());
    let first = Subscribed::new(mm, named("a", log), 10..20);
    let (elsewhere, here) = (range(90..99), range(10..11));

    // Something goes on, and has met nobody: the newcomer makes the number odd, and is told of what comes from now on.
    let outer = start(mm, &elsewhere);
    let even = Subscribed::new(mm, named("b", log), 10..20);
    drop(start(mm, &here));
    assert_eq!(log.take(), "a:Clear b:Clear");
    // Now it is odd: the next one comes when all is over, and is not told until then.
    let odd = Subscribed::new(mm, named("c", log), 10..20);
    drop(start(mm, &here));
    assert_eq!(log.take(), "a:Clear b:Clear");
    thread::scope(|scope| {
        let readers = [&even, &odd].map(|one| scope.spawn(|| one.read_begin()));
        thread::yield_now();
        assert!(readers.iter().all(|reader| !reader.is_finished()), "they wait");
        drop(outer);
        for (reader, one) in readers.into_iter().zip([&even, &odd]) {
            assert!(!one.node.read_retry(reader.join().unwrap()));
        }
    });
    drop(start(mm, &here));
    assert_eq!(log.take(), "a:Clear b:Clear c:Clear");
    [&first, &even, &odd].iter().for_each(|one| one.remove().unwrap());
}

#[test]
fn c28_who_goes_waits_only_if_it_may_be_called() {
    let (mm, log) = (mm(), <&Log>::default());
    let (inside, here) = (Subscribed::new(mm, named("a", log), 10..20), range(10..11));
    let guard = start(mm, &here);
    let waiting = Subscribed::new(mm, named("b", log), 10..20);
    waiting.remove_elsewhere().unwrap();
    thread::scope(|scope| {
        let removes = scope.spawn(|| inside.remove());
        thread::yield_now();
        assert!(!removes.is_finished(), "it is in the tree, and somebody goes through that");
        drop(guard);
        removes.join().unwrap().unwrap();
    });
    log.take();
    drop(start(mm, &here));
    assert_eq!(log.take(), "");
    assert_eq!(inside.remove(), Err(UnregisterError::NotRegistered));
    inside.insert(10, 1).unwrap();
    inside.remove().unwrap();
}

#[test]
fn c29_several_come_and_go_in_any_order() {
    let (mm, log) = (mm(), <&Log>::default());
    let here = range(10..11);
    let goes = Subscribed::new(mm, named("goes", log), 10..20);
    let guard = start(mm, &here);
    let comes: Vec<Subscribed> = ["a", "b", "c", "d"].map(|name| Subscribed::new(mm, named(name, log), 10..20)).into();
    // From the middle, the head and the end of those who wait.
    [1, 3, 0].iter().for_each(|&index| comes[index].remove_elsewhere().unwrap());
    thread::scope(|scope| {
        let removes = scope.spawn(|| goes.remove());
        thread::yield_now();
        drop(guard);
        removes.join().unwrap().unwrap();
    });
    log.take();
    drop(start(mm, &here));
    assert_eq!(log.take(), "c:Clear");
    comes[2].remove().unwrap();
    mm.chain.destroy(kernel());
    assert_eq!(warnings(), []);
}

#[test]
fn c30_intervals_at_the_ends_of_all_addresses() {
    let (mm, log) = (mm(), <&Log>::default());
    let one = Subscribed::idle(mm, named("a", log));
    assert_eq!(one.insert(10, 0), Err(RegisterError::NoInterval));
    assert_eq!(one.insert(usize::MAX, 2), Err(RegisterError::NoInterval));
    one.insert(usize::MAX, 1).unwrap();
    assert_eq!(one.insert(1, 1), Err(RegisterError::Registered));
    mm.chain.release(kernel(), mm);
    assert_eq!(log.take(), "a:Release");
    one.remove().unwrap();
    one.insert(0, usize::MAX).unwrap();
    drop(start(mm, &range(0..1)));
    drop(start(mm, &range(usize::MAX - 2..usize::MAX)));
    assert_eq!(log.take(), "a:Clear a:Clear");
    one.remove().unwrap();
}

#[test]
fn c35_the_end_is_told_once_and_who_was_told_can_still_go() {
    let (mm, log) = (mm(), <&Log>::default());
    let one = Subscribed::new(mm, named("a", log), 10..20);
    mm.users.store(0, Relaxed);
    mm.chain.release(kernel(), mm);
    assert_eq!(log.take(), "a:Release");
    let late = Subscribed::idle(mm, named("b", log));
    assert_eq!(late.insert(1, 1), Err(RegisterError::NoUsers));
    one.remove().unwrap();
}
