//! The list: who is told what, in which order, and what is refused. C1 and so on number the scenarios of the conformance suite.

use std::sync::atomic::Ordering::Relaxed;

use lazytlb_mmu_notifier::{
    Contract, Event, Invalidation, Mirror, MmuNotifier, Node, Owner, Range, RangeGuard, RegisterError, UnregisterError,
    Warning, WouldBlock,
};
use lazytlb_toy_notifier::{
    ByHazards, CompiledOut, Log, Recorder, Toy, ToyMm, mirror, refusing, shared_tables, warnings,
};

type Mm = ToyMm<ByHazards>;
type K = Toy<ByHazards>;

fn kernel() -> K {
    Toy::new()
}

fn range() -> Range {
    Range::new(0x1000..0x3000, Event::Clear).unwrap()
}

fn register(mm: &Mm, node: &Node<K>) -> Result<(), RegisterError> {
    // SAFETY: the tests unsubscribe what they subscribe, and keep the mm.
    unsafe { mm.chain.register(kernel(), &mut mm.mmap_write_lock(), node) }
}

fn unregister(mm: &Mm, node: &Node<K>) -> Result<(), UnregisterError> {
    // SAFETY: nobody else does.
    unsafe { mm.chain.unregister(kernel(), mm, node) }
}

fn pair(mm: &Mm) {
    drop(RangeGuard::start(kernel(), mm, &range()));
}

#[test]
fn c1_who_subscribes_and_unsubscribes_is_released_once() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let one = Recorder::new("a", log);
    let node = mirror(&one);
    assert!(mm.chain.is_unused());
    register(&mm, &node).unwrap();
    assert!(node.is_linked() && !mm.chain.is_unused());
    unregister(&mm, &node).unwrap();
    assert_eq!(log.take(), "a:release");
    assert!(!node.is_linked());
    pair(&mm);
    assert_eq!(log.take(), "");
    register(&mm, &node).unwrap();
    pair(&mm);
    unregister(&mm, &node).unwrap();
    assert_eq!(log.take(), "a:start a:end a:release", "it can come again");
}

#[test]
fn c2_nobody_subscribes_to_what_has_no_users() {
    let (mm, one) = (Mm::new(), Recorder::default());
    mm.users.store(0, Relaxed);
    assert_eq!(register(&mm, &mirror(&one)), Err(RegisterError::NoUsers));
    assert!(mm.chain.is_unused());
}

#[test]
fn c3_the_end_of_an_address_space_releases_and_unsubscribes() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let (one, two) = (Recorder::new("a", log), Recorder::new("b", log));
    let nodes = [mirror(&one), shared_tables(&two)];
    nodes.iter().for_each(|node| register(&mm, node).unwrap());
    mm.users.store(0, Relaxed);
    mm.chain.release(kernel(), &mm);
    assert_eq!(log.take(), "b:release a:release");
    pair(&mm);
    assert_eq!(log.take(), "", "nobody is left");
    nodes.iter().for_each(|node| unregister(&mm, node).unwrap());
    assert_eq!(log.take(), "", "nobody is released or unlinked again");
    assert_eq!(unregister(&mm, &nodes[0]), Err(UnregisterError::NotRegistered));
    mm.chain.destroy(kernel());
    assert_eq!(warnings(), []);
}

#[test]
fn c5_nobody_unsubscribes_in_a_callback() {
    struct Leaves(std::sync::Mutex<Option<Result<(), UnregisterError>>>, std::sync::OnceLock<&'static Node<K>>);
    impl lazytlb_mmu_notifier::MmuNotifier<K> for Leaves {
        fn release(&self, mm: &Mm) {
            *self.0.lock().unwrap() = Some(unregister(mm, self.1.get().unwrap()));
        }
    }
    impl lazytlb_mmu_notifier::SharedTables<K> for Leaves {
        fn arch_invalidate_secondary_tlbs(&self, _: &Mm, _: usize, _: usize) {}
    }
    let mm: &'static Mm = Box::leak(Box::new(Mm::new()));
    let leaves: &'static Leaves = Box::leak(Box::new(Leaves(Default::default(), Default::default())));
    // SAFETY: it stays.
    let node = unsafe { Node::new(lazytlb_mmu_notifier::Contract::SharedTables(std::ptr::NonNull::from(leaves))) };
    let node: &'static Node<K> = Box::leak(Box::new(node));
    leaves.1.set(node).unwrap();
    register(mm, node).unwrap();
    unregister(mm, node).unwrap();
    assert_eq!(leaves.0.lock().unwrap().take(), Some(Err(UnregisterError::InCallback)));
}

#[test]
fn c6_who_is_got_twice_is_put_twice() {
    let (mm, one) = (Mm::new(), Recorder::default());
    let node = mirror(&one);
    register(&mm, &node).unwrap();
    // SAFETY: nobody unregisters it.
    let got = unsafe { mm.chain.get(kernel(), |_| true) }.unwrap().unwrap();
    assert!(std::ptr::eq(got, &node));
    // SAFETY: of register and of get.
    assert!(!unsafe { mm.chain.put(kernel(), &node) });
    assert!(node.is_linked());
    // SAFETY: as above.
    assert!(unsafe { mm.chain.put(kernel(), &node) }, "the last one");
    assert!(!node.is_linked());
    // SAFETY: not; it is there still.
    assert!(!unsafe { mm.chain.put(kernel(), &node) });
    assert_eq!(warnings(), [Warning::PutTooOften]);
    mm.chain.synchronize(kernel());
    // SAFETY: as above.
    assert!(unsafe { mm.chain.get(kernel(), |_| true) }.unwrap().is_none());
}

#[test]
fn c6_put_behind_the_end_unlinks_nothing() {
    let (mm, one) = (Mm::new(), Recorder::default());
    let node = mirror(&one);
    register(&mm, &node).unwrap();
    mm.chain.release(kernel(), &mm);
    // SAFETY: of register.
    assert!(unsafe { mm.chain.put(kernel(), &node) });
}

#[test]
fn c10_a_signal_leaves_nothing_behind() {
    let (mm, one) = (Mm::new(), Recorder::default());
    let node = mirror(&one);
    mm.signal.store(1, Relaxed);
    assert_eq!(register(&mm, &node), Err(RegisterError::Interrupted));
    assert!(mm.chain.is_unused() && !node.is_linked());
    mm.signal.store(0, Relaxed);
    register(&mm, &node).unwrap();
    assert_eq!(register(&mm, &node), Err(RegisterError::Registered));
    unregister(&mm, &node).unwrap();
}

#[test]
fn c12_pairs_nest_and_everybody_hears_both_ends() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let (one, two, tlb) = (Recorder::new("a", log), Recorder::new("b", log), Recorder::new("t", log));
    let nodes = [mirror(&one), refusing(&two), shared_tables(&tlb)];
    nodes.iter().for_each(|node| register(&mm, node).unwrap());
    let range = range();
    let outer = RangeGuard::start(kernel(), &mm, &range);
    let inner = RangeGuard::try_start(kernel(), &mm, &range).unwrap();
    mm.chain.arch_invalidate_secondary_tlbs(kernel(), &mm, 0x1000, 0x2000);
    drop(inner);
    drop(outer);
    assert_eq!(log.take(), "b:start a:start b:start a:start t:flush(4096,8192) a:end a:end");
    nodes.iter().for_each(|node| unregister(&mm, node).unwrap());
}

#[test]
fn an_end_without_a_start_is_warned_of_and_nobody_hears_it() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let one = Recorder::new("a", log);
    let node = mirror(&one);
    register(&mm, &node).unwrap();
    // SAFETY: it ends nothing, which is found.
    unsafe { mm.chain.invalidate_range_end(kernel(), &mm, &range(), true) };
    assert_eq!((log.take().as_str(), warnings()), ("", vec![Warning::EndWithoutStart]));
    pair(&mm);
    assert_eq!(log.take(), "a:start a:end");
    unregister(&mm, &node).unwrap();
}

#[test]
fn c22_who_is_refused_ends_what_it_has_begun() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let (one, two) = (Recorder::new("a", log), Recorder::new("c", log));
    let refuses = Recorder { refuses: true, ..Recorder::new("b", log) };
    let nodes = [mirror(&one), refusing(&refuses), mirror(&two)];
    nodes.iter().for_each(|node| register(&mm, node).unwrap());
    assert_eq!(RangeGuard::try_start(kernel(), &mm, &range()).map(drop), Err(WouldBlock));
    assert_eq!(log.take(), "c:start b:refuses a:start c:end a:end");
    pair(&mm);
    assert_eq!(log.take(), "c:start b:start a:start c:end a:end", "what may block is not refused");
    assert_eq!(warnings(), []);
    nodes.iter().for_each(|node| unregister(&mm, node).unwrap());
}

#[test]
fn c26_who_refuses_what_may_block_is_not_heard() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let one = Recorder::new("a", log);
    let refuses = Recorder { always: true, ..Recorder::new("b", log) };
    let nodes = [mirror(&one), refusing(&refuses)];
    nodes.iter().for_each(|node| register(&mm, node).unwrap());
    pair(&mm);
    assert_eq!((log.take().as_str(), warnings()), ("b:refuses a:start a:end", vec![Warning::RefusedBlockable]));
    nodes.iter().for_each(|node| unregister(&mm, node).unwrap());
}

#[test]
fn c36_an_empty_range_is_none() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let one = Recorder::new("t", log);
    let node = shared_tables(&one);
    register(&mm, &node).unwrap();
    mm.chain.arch_invalidate_secondary_tlbs(kernel(), &mm, 0x1000, 0x1000);
    assert_eq!(log.take(), "");
    assert!(Range::new(5..5, Event::Unmap).is_err());
    unregister(&mm, &node).unwrap();
}

#[test]
fn c41_everybody_is_aged_and_the_first_yes_is_enough_to_know() {
    let (mm, log) = (Mm::new(), <&Log>::default());
    let old = Recorder::new("a", log);
    let young = Recorder { young: true, ..Recorder::new("b", log) };
    let nodes = [mirror(&old), mirror(&young)];
    nodes.iter().for_each(|node| register(&mm, node).unwrap());
    assert!(mm.chain.clear_flush_young(kernel(), &mm, 1, 2));
    assert!(mm.chain.clear_young(kernel(), &mm, 1, 2));
    assert!(mm.chain.test_young(kernel(), &mm, 1));
    assert_eq!(
        log.take(),
        "b:clear_flush_young(1,2) a:clear_flush_young(1,2) b:clear_young a:clear_young b:test_young"
    );
    unregister(&mm, &nodes[1]).unwrap();
    log.take();
    assert!(!mm.chain.clear_young(kernel(), &mm, 1, 2));
    unregister(&mm, &nodes[0]).unwrap();
}

#[test]
fn a_chain_that_goes_with_a_subscriber_is_warned_of() {
    let (mm, one) = (Mm::new(), Recorder::default());
    let node = mirror(&one);
    register(&mm, &node).unwrap();
    mm.chain.destroy(kernel());
    assert_eq!(warnings(), [Warning::NotEmpty]);
    unregister(&mm, &node).unwrap();
}

#[test]
fn nobody_subscribes_where_notifiers_are_compiled_out_and_all_calls_are_there() {
    let (mm, log) = (ToyMm::<CompiledOut>::new(), <&Log>::default());
    let one = Recorder::new("a", log);
    let node = mirror::<CompiledOut>(&one);
    // SAFETY: it is not subscribed.
    let registered = unsafe { mm.chain.register(Toy::new(), &mut mm.mmap_write_lock(), &node) };
    assert_eq!(registered, Err(RegisterError::NotConfigured));
    let range = range();
    drop(RangeGuard::start(Toy::new(), &mm, &range));
    assert!(!mm.chain.clear_flush_young(Toy::new(), &mm, 0, 1));
    mm.chain.release(Toy::new(), &mm);
    mm.chain.destroy(Toy::new());
    assert_eq!(log.take(), "");
}

#[test]
fn c34_who_has_asked_for_it_knows_it_by_the_owner() {
    struct Migrates(&'static Log);
    impl MmuNotifier<K> for Migrates {
        fn release(&self, _: &Mm) {}
    }
    impl Mirror<K> for Migrates {
        fn invalidate_range_start(&self, _: &Mm, invalidation: Invalidation<'_>) {
            let range = invalidation.range();
            let own = range.event() == Event::Migrate && range.owner() == Some(Owner(7));
            self.0.push(if own { "own" } else { "foreign" }.into());
        }
        fn invalidate_range_end(&self, _: &Mm, _: Invalidation<'_>) {}
    }
    let (mm, log) = (Mm::new(), <&Log>::default());
    let one = Migrates(log);
    // SAFETY: it stays.
    let node = unsafe { Node::new(Contract::Mirror(std::ptr::NonNull::from(&one))) };
    register(&mm, &node).unwrap();
    let migration = || Range::new(0..1, Event::Migrate).unwrap();
    for range in [migration(), migration().by(Owner(7)), migration().by(Owner(8)), range().by(Owner(7))] {
        drop(RangeGuard::start(kernel(), &mm, &range));
    }
    assert_eq!(log.take(), "foreign own foreign foreign");
    unregister(&mm, &node).unwrap();
}
