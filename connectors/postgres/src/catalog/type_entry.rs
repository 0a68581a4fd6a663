/// A row of `pg_type`, as far as decoding needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeEntry {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// `typtype`.
    pub kind: char,
    /// `typcategory`.
    pub category: char,
    /// The element of a true array, else zero.
    pub element: u32,
    /// The type under a domain, else zero.
    pub base: u32,
    /// The modifier of the type under a domain.
    pub base_typmod: i32,
    /// What separates the elements of an array of it.
    pub delimiter: char,
}
