//! A tree of intervals: those that overlap a range are found in logarithmic time.
//!
//! A treap (Aragon and Seidel 1989): ordered by first address, and by a random number from the root down, which keeps it balanced with nothing
//! to rebalance. Each node knows the last address of all below it. All words are of the platform's memory, so that a model sees each step.
//!
//! Context of all: who changes the tree holds the chain's lock; who reads it holds it, too, or nobody changes it meanwhile.

use core::ptr::{NonNull, null_mut};

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::Relaxed};

/// The place of something in a tree.
pub(crate) struct Link<M: Memory, T> {
    parent: M::AtomicPtr<T>,
    /// Left, right.
    children: [M::AtomicPtr<T>; 2],
    /// What orders from the root down.
    priority: M::AtomicUsize,
    start: M::AtomicUsize,
    last: M::AtomicUsize,
    /// The greatest `last` of this node and all below.
    greatest: M::AtomicUsize,
}

impl<M: Memory, T> Default for Link<M, T> {
    fn default() -> Self {
        let word = || AtomicWord::new(0);
        let pointer = || AtomicWord::new(null_mut());
        Link {
            parent: pointer(),
            children: [pointer(), pointer()],
            priority: word(),
            start: word(),
            last: word(),
            greatest: word(),
        }
    }
}

impl<M: Memory, T> Link<M, T> {
    /// Sets the interval. Context: in no tree.
    pub(crate) fn set(&self, start: usize, last: usize) {
        self.start.store(start, Relaxed);
        self.last.store(last, Relaxed);
    }

    /// The first address and the last one.
    pub(crate) fn interval(&self) -> (usize, usize) {
        (self.start.load(Relaxed), self.last.load(Relaxed))
    }
}

/// What has a place in a tree.
///
/// # Safety
/// [`link`](Self::link) gives the same one each time.
pub(crate) unsafe trait Linked<M: Memory>: Sized {
    fn link(&self) -> &Link<M, Self>;
}

/// A node of the tree's, or none.
///
/// # Safety
/// `node` is null, or in a tree whose nodes stay where they are as long as they are in it.
unsafe fn node<'a, T>(node: *mut T) -> Option<&'a T> {
    // SAFETY: the caller's promise.
    NonNull::new(node).map(|node| unsafe { node.as_ref() })
}

/// The tree.
pub(crate) struct Tree<M: Memory, T> {
    root: M::AtomicPtr<T>,
    /// How many were inserted: what random numbers are made of.
    inserted: M::AtomicUsize,
}

impl<M: Memory, T> Default for Tree<M, T> {
    fn default() -> Self {
        Tree { root: AtomicWord::new(null_mut()), inserted: AtomicWord::new(0) }
    }
}

/// Spreads numbers that follow each other (Steele's splitmix64, 2014, as far as a word goes).
fn spread(number: usize) -> usize {
    let mut bits = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits ^ bits >> 31) as usize
}

impl<M: Memory, T: Linked<M>> Tree<M, T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.load(Relaxed).is_null()
    }

    fn child(&self, of: &T, side: usize) -> Option<&T> {
        // SAFETY: what a node of the tree leads to is in the tree.
        unsafe { node(of.link().children[side].load(Relaxed)) }
    }

    fn parent(&self, of: &T) -> Option<&T> {
        // SAFETY: as above.
        unsafe { node(of.link().parent.load(Relaxed)) }
    }

    fn root(&self) -> Option<&T> {
        // SAFETY: as above.
        unsafe { node(self.root.load(Relaxed)) }
    }

    /// The word that leads to a node with this parent.
    fn word_of<'a>(&'a self, child: &T, parent: Option<&'a T>) -> &'a M::AtomicPtr<T> {
        match parent {
            None => &self.root,
            Some(parent) => {
                let words = &parent.link().children;
                let is_left = core::ptr::eq(words[0].load(Relaxed), child);
                &words[usize::from(!is_left)]
            }
        }
    }

    fn greatest(&self, of: Option<&T>) -> usize {
        of.map_or(0, |one| one.link().greatest.load(Relaxed))
    }

    /// A node's own knowledge of what is below it.
    fn update(&self, one: &T) {
        let (_, last) = one.link().interval();
        let below = self.greatest(self.child(one, 0)).max(self.greatest(self.child(one, 1)));
        one.link().greatest.store(last.max(below), Relaxed);
    }

    /// The same, and of all above it.
    fn update_up(&self, one: Option<&T>) {
        let mut next = one;
        while let Some(one) = next {
            self.update(one);
            next = self.parent(one);
        }
    }

    /// A node changes places with its parent.
    fn rotate_up(&self, one: &T, parent: &T) {
        let above = self.parent(parent);
        let side = usize::from(!core::ptr::eq(parent.link().children[0].load(Relaxed), one));
        let pointer = |to: &T| core::ptr::from_ref(to).cast_mut();
        self.word_of(parent, above).store(pointer(one), Relaxed);
        one.link().parent.store(above.map_or(null_mut(), pointer), Relaxed);
        // What was between them stays there.
        let between = one.link().children[1 - side].load(Relaxed);
        parent.link().children[side].store(between, Relaxed);
        if let Some(between) = self.child(parent, side) {
            between.link().parent.store(pointer(parent), Relaxed);
        }
        one.link().children[1 - side].store(pointer(parent), Relaxed);
        parent.link().parent.store(pointer(one), Relaxed);
        self.update(parent);
        self.update(one);
    }

    /// Inserts a node, whose interval is set.
    ///
    /// # Safety
    /// It is in no tree, and stays where it is until it is removed.
    pub(crate) unsafe fn insert(&self, new: &T) {
        let number = self.inserted.load(Relaxed);
        self.inserted.store(number.wrapping_add(1), Relaxed);
        let link = new.link();
        let (start, last) = link.interval();
        link.priority.store(spread(number), Relaxed);
        link.children.iter().for_each(|child| child.store(null_mut(), Relaxed));
        link.greatest.store(last, Relaxed);

        let (mut parent, mut word) = (None, &self.root);
        // SAFETY: what leads to something leads to a node of the tree.
        while let Some(one) = unsafe { node(word.load(Relaxed)) } {
            parent = Some(one);
            let side = usize::from(start >= one.link().start.load(Relaxed));
            word = &one.link().children[side];
        }
        link.parent.store(parent.map_or(null_mut(), |one: &T| core::ptr::from_ref(one).cast_mut()), Relaxed);
        word.store(core::ptr::from_ref(new).cast_mut(), Relaxed);
        self.update_up(parent);
        while let Some(parent) = self.parent(new) {
            if parent.link().priority.load(Relaxed) >= link.priority.load(Relaxed) {
                break;
            }
            self.rotate_up(new, parent);
        }
    }

    /// Removes a node.
    ///
    /// # Safety
    /// It is in this tree.
    pub(crate) unsafe fn remove(&self, old: &T) {
        let priority = |one: Option<&T>| one.map(|one| one.link().priority.load(Relaxed));
        // Down to where it has nothing below.
        loop {
            let (left, right) = (self.child(old, 0), self.child(old, 1));
            let up = if priority(left) >= priority(right) { left } else { right };
            let Some(up) = up else { break };
            self.rotate_up(up, old);
        }
        let parent = self.parent(old);
        self.word_of(old, parent).store(null_mut(), Relaxed);
        self.update_up(parent);
    }

    /// The first node, in the order of first addresses, whose interval has one of these addresses.
    pub(crate) fn first(&self, start: usize, last: usize) -> Option<&T> {
        self.first_below(self.root()?, start, last)
    }

    fn first_below<'a>(&'a self, mut one: &'a T, start: usize, last: usize) -> Option<&'a T> {
        loop {
            if let Some(left) = self.child(one, 0).filter(|left| self.greatest(Some(left)) >= start) {
                // If any overlaps that is not left of here, this one begins behind the range.
                one = left;
                continue;
            }
            let (of_start, of_last) = one.link().interval();
            if of_start > last {
                return None;
            }
            if of_last >= start {
                return Some(one);
            }
            one = self.child(one, 1).filter(|right| self.greatest(Some(right)) >= start)?;
        }
    }

    /// The next one behind it.
    pub(crate) fn next<'a>(&'a self, mut one: &'a T, start: usize, last: usize) -> Option<&'a T> {
        loop {
            if let Some(right) = self.child(one, 1).filter(|right| self.greatest(Some(right)) >= start) {
                return self.first_below(right, start, last);
            }
            // Up, to the first that this is left of.
            let above = loop {
                let parent = self.parent(one)?;
                let was_left = core::ptr::eq(parent.link().children[0].load(Relaxed), one);
                one = parent;
                if was_left {
                    break parent;
                }
            };
            let (of_start, of_last) = above.link().interval();
            if of_start > last {
                return None;
            }
            if of_last >= start {
                return Some(above);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazytlb_core::native::Native;
    use proptest::prelude::*;

    struct Item(Link<Native, Item>);

    // SAFETY: it is a field.
    unsafe impl Linked<Native> for Item {
        fn link(&self) -> &Link<Native, Item> {
            &self.0
        }
    }

    /// What a node knows of what is below it, and the order from the root down; returns how deep it goes.
    fn check(tree: &Tree<Native, Item>, one: Option<&Item>, parent: Option<&Item>) -> usize {
        let Some(one) = one else { return 0 };
        let link = one.link();
        assert!(core::ptr::eq(
            link.parent.load(Relaxed),
            parent.map_or(null_mut(), |one| core::ptr::from_ref(one).cast_mut())
        ));
        let children = [tree.child(one, 0), tree.child(one, 1)];
        let (start, last) = link.interval();
        let mut greatest = last;
        for child in children.into_iter().flatten() {
            assert!(child.link().priority.load(Relaxed) <= link.priority.load(Relaxed));
            greatest = greatest.max(child.link().greatest.load(Relaxed));
        }
        assert_eq!(greatest, link.greatest.load(Relaxed));
        assert!(children[0].is_none_or(|left| left.link().start.load(Relaxed) <= start));
        assert!(children[1].is_none_or(|right| right.link().start.load(Relaxed) >= start));
        1 + children.map(|child| check(tree, child, Some(one))).into_iter().max().unwrap_or(0)
    }

    fn overlapping(tree: &Tree<Native, Item>, start: usize, last: usize) -> Vec<*const Item> {
        let first = tree.first(start, last);
        core::iter::successors(first, |one| tree.next(one, start, last)).map(core::ptr::from_ref).collect()
    }

    proptest! {
        #[test]
        fn it_finds_what_a_plain_search_finds(
            intervals in prop::collection::vec((0..60usize, 0..20usize), 1..40),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
            asked in prop::collection::vec((0..80usize, 0..30usize), 1..12),
        ) {
            let items: Vec<Item> = intervals.iter().map(|_| Item(Link::default())).collect();
            let tree = Tree::default();
            let mut inside: Vec<&Item> = Vec::new();
            for (item, (start, length)) in items.iter().zip(&intervals) {
                item.link().set(*start, start + length);
                // SAFETY: in no tree, and the items stay.
                unsafe { tree.insert(item) };
                inside.push(item);
                check(&tree, tree.root(), None);
            }
            for index in removed {
                if inside.is_empty() {
                    break;
                }
                let item = inside.swap_remove(index.index(inside.len()));
                // SAFETY: in this tree.
                unsafe { tree.remove(item) };
                check(&tree, tree.root(), None);
            }
            prop_assert_eq!(tree.is_empty(), inside.is_empty());
            for (start, length) in asked {
                let last = start + length;
                let overlaps = |item: &&&Item| {
                    let (of_start, of_last) = item.link().interval();
                    of_start <= last && of_last >= start
                };
                let found = overlapping(&tree, start, last);
                let starts: Vec<usize> = found.iter().map(|&item| {
                    // SAFETY: of the items above.
                    unsafe { &*item }.link().interval().0
                }).collect();
                prop_assert!(starts.is_sorted());
                let mut found = found;
                let mut expected: Vec<*const Item> = inside.iter().filter(overlaps).map(|&item| core::ptr::from_ref(item)).collect();
                found.sort();
                expected.sort();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn it_stays_shallow_whatever_the_order() {
        let items: Vec<Item> = (0..10_000).map(|_| Item(Link::default())).collect();
        let tree = Tree::default();
        for (start, item) in items.iter().enumerate() {
            item.link().set(start, start);
            // SAFETY: in no tree, and the items stay.
            unsafe { tree.insert(item) };
        }
        // Twice the logarithm is what is expected; the numbers are the same in each run.
        assert!(check(&tree, tree.root(), None) < 40);
        assert_eq!(overlapping(&tree, 5_000, 5_002).len(), 3);
        assert_eq!(overlapping(&tree, 0, usize::MAX).len(), 10_000);
    }
}
