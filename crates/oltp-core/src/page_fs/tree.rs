//! The names of a data directory: directories, files and symbolic links, without any contents.
//!
//! Every change is a [`Change`]: a value that is applied to the live tree and noted in a journal. A cut
//! takes the journal and nothing else, so it costs the same with a hundred relations and with a hundred
//! thousand; the capture, off the path of the writers, applies it to a second tree, which is thereby the
//! directory *as of the cut*.
//!
//! The invariant: **applying the same changes to equal trees gives equal trees**, so nothing in here asks
//! the clock or draws a number.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;

use crate::ids::FileId;

/// The number the kernel knows a node by. Never used again for another node while mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ino(pub(super) u64);

impl Ino {
    /// FUSE's number for the root.
    pub(super) const ROOT: Ino = Ino(1);

    /// Files, directories and links draw their numbers from the lineage's sequence of file ids, so that no
    /// number ever means two things; 0 and 1 are FUSE's own.
    pub(super) fn of(id: FileId) -> Ino {
        Ino(id.0.saturating_add(2))
    }
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory(BTreeMap<Box<str>, Ino>),
    File(FileId),
    Symlink(Box<str>),
}

/// A named thing and where it hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) parent: Ino,
    pub(super) name: Box<str>,
}

/// One change of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Add { parent: Ino, name: Box<str>, ino: Ino, kind: Kind, mode: u32 },
    Remove { parent: Ino, name: Box<str> },
    Rename { from: Ino, name: Box<str>, to: Ino, new_name: Box<str> },
    Mode { ino: Ino, mode: u32 },
}

/// What a change took away: the node that a removal or a rename onto it unlinked.
pub(super) type Unlinked = Option<(Ino, Node)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    nodes: HashMap<Ino, Node>,
}

impl Tree {
    /// A directory with nothing in it.
    pub(super) fn new(mode: u32) -> Tree {
        let root = Node { kind: Kind::Directory(BTreeMap::new()), mode, parent: Ino::ROOT, name: "".into() };
        Tree { nodes: HashMap::from([(Ino::ROOT, root)]) }
    }

    pub(super) fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(Errno::NOENT)
    }

    /// The names in a directory.
    pub(super) fn children(&self, ino: Ino) -> Result<&BTreeMap<Box<str>, Ino>, Errno> {
        match &self.node(ino)?.kind {
            Kind::Directory(children) => Ok(children),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn children_mut(&mut self, ino: Ino) -> Result<&mut BTreeMap<Box<str>, Ino>, Errno> {
        match &mut self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?.kind {
            Kind::Directory(children) => Ok(children),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn lookup(&self, parent: Ino, name: &str) -> Result<Ino, Errno> {
        self.children(parent)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Finds a path such as `base/5/1259`; the empty path is the root.
    pub(super) fn find(&self, path: &str) -> Option<Ino> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(Ino::ROOT, |at, part| self.lookup(at, part).ok())
    }

    /// The path from the root, without a leading slash.
    pub(super) fn path(&self, ino: Ino) -> Result<String, Errno> {
        let mut parts = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let node = self.node(at)?;
            parts.push(&*node.name);
            at = node.parent;
        }
        parts.reverse();
        Ok(parts.join("/"))
    }

    /// The path that `name` in `parent` has or would have.
    pub(super) fn path_in(&self, parent: Ino, name: &str) -> Result<String, Errno> {
        let mut path = self.path(parent)?;
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(name);
        Ok(path)
    }

    /// Every node with its path, parents before their children, names in order.
    pub(super) fn walk(&self) -> Vec<(String, Ino, &Node)> {
        let mut found = Vec::with_capacity(self.nodes.len());
        let mut open = vec![(String::new(), Ino::ROOT)];
        while let Some((path, ino)) = open.pop() {
            let Some(node) = self.nodes.get(&ino) else { continue };
            if let Kind::Directory(children) = &node.kind {
                for (name, child) in children.iter().rev() {
                    let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                    open.push((path, *child));
                }
            }
            if ino != Ino::ROOT {
                found.push((path, ino, node));
            }
        }
        found
    }

    /// Applies one change, wholly or not at all.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Unlinked, Errno> {
        match change {
            Change::Add { parent, name, ino, kind, mode } => {
                self.add(*parent, name, *ino, kind.clone(), *mode)?;
                Ok(None)
            }
            Change::Remove { parent, name } => self.remove(*parent, name),
            Change::Rename { from, name, to, new_name } => self.rename(*from, name, *to, new_name),
            Change::Mode { ino, mode } => {
                self.nodes.get_mut(ino).ok_or(Errno::NOENT)?.mode = *mode;
                Ok(None)
            }
        }
    }

    fn add(&mut self, parent: Ino, name: &str, ino: Ino, kind: Kind, mode: u32) -> Result<(), Errno> {
        if self.nodes.contains_key(&ino) {
            return Err(Errno::EXIST);
        }
        let children = self.children_mut(parent)?;
        if children.contains_key(name) {
            return Err(Errno::EXIST);
        }
        children.insert(name.into(), ino);
        self.nodes.insert(ino, Node { kind, mode, parent, name: name.into() });
        Ok(())
    }

    fn remove(&mut self, parent: Ino, name: &str) -> Result<Unlinked, Errno> {
        let ino = self.lookup(parent, name)?;
        if self.children(ino).is_ok_and(|children| !children.is_empty()) {
            return Err(Errno::NOTEMPTY);
        }
        self.children_mut(parent)?.remove(name);
        Ok(self.nodes.remove(&ino).map(|node| (ino, node)))
    }

    fn rename(&mut self, from: Ino, name: &str, to: Ino, new_name: &str) -> Result<Unlinked, Errno> {
        let ino = self.lookup(from, name)?;
        let is_directory = self.children(ino).is_ok();
        let mut above = to;
        while above != Ino::ROOT {
            if above == ino {
                return Err(Errno::INVAL); // into itself
            }
            above = self.node(above)?.parent;
        }
        let replaced = match self.lookup(to, new_name) {
            Ok(target) if target == ino => return Ok(None),
            Ok(target) => match (is_directory, self.children(target).is_ok()) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ => self.remove(to, new_name)?,
            },
            Err(Errno::NOENT) => None,
            Err(other) => return Err(other),
        };
        self.children_mut(to)?.insert(new_name.into(), ino);
        self.children_mut(from)?.remove(name);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.parent = to;
            node.name = new_name.into();
        }
        Ok(replaced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(tree: &mut Tree, parent: Ino, name: &str, ino: u64) -> Ino {
        let kind = Kind::Directory(BTreeMap::new());
        tree.apply(&Change::Add { parent, name: name.into(), ino: Ino(ino), kind, mode: 0o700 }).unwrap();
        Ino(ino)
    }

    fn file(tree: &mut Tree, parent: Ino, name: &str, ino: u64) -> Ino {
        let kind = Kind::File(FileId(ino));
        tree.apply(&Change::Add { parent, name: name.into(), ino: Ino(ino), kind, mode: 0o600 }).unwrap();
        Ino(ino)
    }

    #[test]
    fn a_renamed_directory_carries_its_descendants() {
        let mut tree = Tree::new(0o700);
        let slots = directory(&mut tree, Ino::ROOT, "pg_replslot", 10);
        let slot = directory(&mut tree, slots, "orders.tmp", 11);
        let state = file(&mut tree, slot, "state", 12);
        let change =
            Change::Rename { from: slots, name: "orders.tmp".into(), to: slots, new_name: "orders".into() };
        tree.apply(&change).unwrap();
        assert_eq!(tree.path(state).unwrap(), "pg_replslot/orders/state");
        assert_eq!(tree.find("pg_replslot/orders/state"), Some(state));
        assert_eq!(tree.find("pg_replslot/orders.tmp"), None);
    }

    #[test]
    fn a_rename_replaces_files_and_empty_directories_only() {
        let mut tree = Tree::new(0o700);
        let base = directory(&mut tree, Ino::ROOT, "base", 10);
        let old = file(&mut tree, Ino::ROOT, "pg_filenode.map", 11);
        file(&mut tree, Ino::ROOT, "pg_filenode.map.tmp", 12);
        let rename = |from: &str, to: &str| Change::Rename {
            from: Ino::ROOT,
            name: from.into(),
            to: Ino::ROOT,
            new_name: to.into(),
        };
        let unlinked = tree.apply(&rename("pg_filenode.map.tmp", "pg_filenode.map")).unwrap();
        assert_eq!(unlinked.map(|(ino, _)| ino), Some(old));
        assert_eq!(tree.apply(&rename("pg_filenode.map", "base")), Err(Errno::ISDIR));
        assert_eq!(tree.apply(&rename("base", "pg_filenode.map")), Err(Errno::NOTDIR));
        let into_itself =
            Change::Rename { from: Ino::ROOT, name: "base".into(), to: base, new_name: "x".into() };
        assert_eq!(tree.apply(&into_itself), Err(Errno::INVAL));
        file(&mut tree, base, "1", 13);
        let before = tree.clone();
        let remove = Change::Remove { parent: Ino::ROOT, name: "base".into() };
        assert_eq!(tree.apply(&remove), Err(Errno::NOTEMPTY));
        assert_eq!(tree, before, "a refused change changes nothing");
    }

    #[test]
    fn a_walk_meets_parents_first_and_names_in_order() {
        let mut tree = Tree::new(0o700);
        let base = directory(&mut tree, Ino::ROOT, "base", 10);
        file(&mut tree, base, "2", 12);
        file(&mut tree, base, "1", 11);
        file(&mut tree, Ino::ROOT, "PG_VERSION", 13);
        let paths: Vec<String> = tree.walk().into_iter().map(|(path, _, _)| path).collect();
        assert_eq!(paths, ["PG_VERSION", "base", "base/1", "base/2"]);
    }
}
