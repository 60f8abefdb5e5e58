//! What came before: each form of the list, and the second class of 2008.

use std::sync::atomic::{AtomicBool, Ordering::*};

use lazytlb_mmu_notifier::former::{Form, FormerChain};
use lazytlb_mmu_notifier::rmap::{CannotEvict, MmuRmapNotifier, RmapChain, RmapNode, RmapPage};
use lazytlb_mmu_notifier::{Event, Node, Range, UnregisterError, Warning};
use lazytlb_toy_notifier::{ByHazards, Log, Recorder, Toy, ToyMm, mirror, refusing, warnings};

type Mm = ToyMm<ByHazards>;
type K = Toy<ByHazards>;

fn kernel() -> K {
    Toy::new()
}

fn range() -> Range {
    Range::new(0x1000..0x3000, Event::Unmap).unwrap()
}

fn register(chain: &FormerChain<K>, mm: &Mm, node: &Node<K>) {
    // SAFETY: the tests keep both.
    unsafe { chain.register(kernel(), &mut mm.mmap_write_lock(), node) }.unwrap();
}

fn unregister(chain: &FormerChain<K>, mm: &Mm, node: &Node<K>) {
    // SAFETY: one thread, which frees nothing before its end.
    unsafe { chain.unregister(kernel(), mm, node) }.unwrap();
}

/// What one that mirrors and one that refuses are told of: a refused start; the end of the address space; and of unsubscribing before and behind that.
fn told(form: Form) -> [String; 3] {
    let (chain, mm, log) = (FormerChain::new(form), Mm::new(), <&Log>::default());
    let (mirrors, refuses) = (Recorder::new("m", log), Recorder { refuses: true, ..Recorder::new("r", log) });
    let nodes = [refusing(&refuses), mirror(&mirrors)];
    nodes.iter().for_each(|node| register(&chain, &mm, node));
    assert!(chain.invalidate_range_start_nonblock(kernel(), &mm, &range()).is_err());
    let refused = log.take();
    unregister(&chain, &mm, &nodes[0]);
    let left = log.take();
    chain.release(kernel(), &mm);
    unregister(&chain, &mm, &nodes[1]);
    let unlinked_twice = warnings().contains(&Warning::UnlinkedTwice);
    let released = log.take() + if unlinked_twice { ", unlinked twice" } else { "" };
    [refused, left, released]
}

#[test]
fn each_form_tells_what_it_did() {
    let expected = [
        ("posted", ["m:start r:refuses", "", "m:release, unlinked twice"]),
        ("reviewed", ["m:start r:refuses m:end", "r:release", "m:release"]),
        ("v2.6.27", ["m:start r:refuses", "r:release", "m:release"]),
        ("v3.6", ["m:start r:refuses", "r:release", "m:release"]),
        ("v3.9", ["m:start r:refuses", "r:release", "m:release"]),
        ("v3.10", ["m:start r:refuses", "r:release", "m:release"]),
        ("v4.19", ["m:start r:refuses", "r:release", "m:release"]),
    ];
    let all: Vec<(&str, [String; 3])> = Form::ALL.iter().map(|&(name, form)| (name, told(form))).collect();
    assert_eq!(all.len(), expected.len());
    for ((name, told), (of, expected)) in all.iter().zip(&expected) {
        assert_eq!((name, told.each_ref().map(String::as_str)), (of, *expected));
    }
}

/// A page, and its flag.
#[derive(Default)]
struct Page(AtomicBool);

impl RmapPage for Page {
    fn external_rmap(&self) -> bool {
        self.0.load(Relaxed)
    }
    fn set_external_rmap(&self, exported: bool) {
        self.0.store(exported, Relaxed);
    }
}

/// A list, and a node in it.
type Own = (&'static RmapChain<K, Page>, &'static std::sync::OnceLock<RmapNode<K, Page>>);

/// A driver with a reverse map.
struct Driver {
    log: &'static Log,
    busy: bool,
    /// It takes itself out of this list when it is told.
    leaves: Option<Own>,
}

impl MmuRmapNotifier<Page> for Driver {
    fn try_invalidate_page(&self, _: &Page) -> Result<(), CannotEvict> {
        self.log.push(if self.busy { "cannot" } else { "drops" }.into());
        if self.busy { Err(CannotEvict) } else { Ok(()) }
    }
    fn invalidate_page(&self, _: &Page) {
        self.log.push("must".into());
        if let Some((chain, node)) = self.leaves {
            // SAFETY: in this list.
            let left = unsafe { chain.unregister(kernel(), node.get().unwrap()) };
            assert_eq!(left, Err(UnregisterError::InCallback));
        }
    }
}

fn chain() -> &'static RmapChain<K, Page> {
    Box::leak(Box::new(RmapChain::new(Form::REVIEWED)))
}

fn node(driver: Driver) -> RmapNode<K, Page> {
    // SAFETY: it stays.
    unsafe { RmapNode::new(std::ptr::NonNull::from(&*Box::leak(Box::new(driver)))) }
}

#[test]
fn only_for_exported_pages_is_anybody_told() {
    let (chain, page, log) = (chain(), Page::default(), <&Log>::default());
    let one = node(Driver { log, busy: false, leaves: None });
    // SAFETY: it is taken out below.
    unsafe { chain.register(kernel(), &one) };
    assert_eq!(chain.try_to_unmap(kernel(), &page), Ok(()));
    chain.page_mkclean(kernel(), &page);
    assert_eq!(log.take(), "");
    chain.export_page(&page);
    assert_eq!(chain.try_to_unmap(kernel(), &page), Ok(()));
    assert_eq!((log.take().as_str(), page.external_rmap()), ("drops", false));
    chain.export_page(&page);
    chain.page_mkclean(kernel(), &page);
    assert_eq!((log.take().as_str(), page.external_rmap()), ("must", false));
    // SAFETY: in this list.
    assert_eq!(unsafe { chain.unregister(kernel(), &one) }, Ok(()));
    // SAFETY: in none.
    assert_eq!(unsafe { chain.unregister(kernel(), &one) }, Err(UnregisterError::NotRegistered));
}

#[test]
fn a_page_that_one_cannot_drop_stays_and_must_be_dropped_to_be_cleaned() {
    let (chain, page, log) = (chain(), Page::default(), <&Log>::default());
    let nodes = [true, false].map(|busy| node(Driver { log, busy, leaves: None }));
    // SAFETY: they stay as long as the list is used.
    nodes.iter().for_each(|node| unsafe { chain.register(kernel(), node) });
    chain.export_page(&page);
    assert_eq!(chain.try_to_unmap(kernel(), &page), Err(CannotEvict));
    assert_eq!((log.take().as_str(), page.external_rmap()), ("drops cannot", true));
    chain.page_mkclean(kernel(), &page);
    assert_eq!((log.take().as_str(), page.external_rmap()), ("must must", false));
}

#[test]
fn nobody_leaves_in_a_callback() {
    let (chain, page, log) = (chain(), Page::default(), <&Log>::default());
    let own: &'static std::sync::OnceLock<_> = Box::leak(Box::default());
    let own_node = own.get_or_init(|| node(Driver { log, busy: false, leaves: Some((chain, own)) }));
    // SAFETY: it stays.
    unsafe { chain.register(kernel(), own_node) };
    chain.export_page(&page);
    chain.page_mkclean(kernel(), &page);
    assert_eq!(log.take(), "must");
}
