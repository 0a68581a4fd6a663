//! The shop: four tables, its first rows, and one order to follow.

use super::DemoError;
use postgres_connector::Client;
use wal_decoder::Lsn;

/// The tables, in the order in which they are shown.
pub(super) const TABLES: [&str; 4] = ["customers", "products", "orders", "order_items"];

/// Customers at the beginning.
pub(super) const CUSTOMERS: i64 = 5_000;

/// Products at the beginning.
pub(super) const PRODUCTS: i64 = 500;

/// Orders at the beginning: enough to see a load happen, few enough for half a minute.
pub(super) const ORDERS: i64 = 100_000;

/// One transaction: whoever looks sees no shop or a whole one, with statistics for the load's progress.
const OPENING: &str = "
BEGIN;
CREATE TABLE public.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, city text NOT NULL);
CREATE TABLE public.products (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, price numeric(10,2) NOT NULL);
CREATE TABLE public.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES public.customers,
    status text NOT NULL DEFAULT 'placed', total numeric(12,2) NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE public.order_items (
    order_id bigint NOT NULL REFERENCES public.orders ON DELETE CASCADE, line int NOT NULL,
    product_id bigint NOT NULL REFERENCES public.products,
    quantity int NOT NULL, price numeric(10,2) NOT NULL, PRIMARY KEY (order_id, line));
INSERT INTO public.customers (name, city)
    SELECT 'Customer ' || n, (ARRAY['Lisboa', 'Oslo', 'Kyoto', 'Zürich', 'São Paulo'])[1 + n % 5]
    FROM generate_series(1, $CUSTOMERS) n;
INSERT INTO public.products (name, price)
    SELECT 'Product ' || n, 5 + n % 97 + 0.99 FROM generate_series(1, $PRODUCTS) n;
INSERT INTO public.orders (customer_id, status, total, placed_at)
    SELECT 1 + n % $CUSTOMERS, (ARRAY['placed', 'paid', 'shipped', 'delivered'])[1 + n % 4], 0,
        now() - n * interval '1 minute'
    FROM generate_series(1, $ORDERS) n;
INSERT INTO public.order_items (order_id, line, product_id, quantity, price)
    SELECT n, line, product.id, 1 + n % 3, product.price
    FROM generate_series(1, $ORDERS) n, generate_series(1, 1 + n % 3) line,
        LATERAL (SELECT id, price FROM public.products WHERE id = 1 + (n * 7 + line) % $PRODUCTS) product;
UPDATE public.orders SET total = sums.total FROM
    (SELECT order_id, sum(quantity * price) AS total FROM public.order_items GROUP BY order_id) sums
    WHERE id = order_id;
COMMIT;
ANALYZE public.customers, public.products, public.orders, public.order_items";

/// One transaction that changes all four tables, and tells where the log stood just before its commit.
const ADAS_ORDER: &str = "
WITH customer AS (
    INSERT INTO public.customers (name, city) VALUES ('Ada', 'London') RETURNING id),
product AS (
    INSERT INTO public.products (name, price) VALUES ('Analytical engine', 1843.00) RETURNING id, price),
placed AS (
    INSERT INTO public.orders (customer_id, total)
    SELECT customer.id, product.price FROM customer, product RETURNING id),
item AS (
    INSERT INTO public.order_items (order_id, line, product_id, quantity, price)
    SELECT placed.id, 1, product.id, 1, product.price FROM placed, product)
SELECT id, (pg_current_wal_insert_lsn() - '0/0')::bigint FROM placed";

/// As [`ADAS_ORDER`], it tells where the log stood just before its own commit.
const NEXT_STATUS: &str = "
UPDATE public.orders SET status = $2 WHERE id = $1 RETURNING (pg_current_wal_insert_lsn() - '0/0')::bigint";

/// Of a product that she has not bought, many at once.
const ADAS_NEXT_ORDER: &str = "
WITH placed AS (
    INSERT INTO public.orders (customer_id, total) SELECT $1, 7 * price FROM public.products WHERE id = 7 RETURNING id),
item AS (
    INSERT INTO public.order_items (order_id, line, product_id, quantity, price)
    SELECT placed.id, 1, 7, 7, price FROM placed, public.products p WHERE p.id = 7)
SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint FROM placed";

/// Makes the tables and fills them.
pub(super) async fn open(client: &Client) -> Result<(), DemoError> {
    let opening = [("$CUSTOMERS", CUSTOMERS), ("$PRODUCTS", PRODUCTS), ("$ORDERS", ORDERS)]
        .iter()
        .fold(OPENING.to_owned(), |text, (name, number)| text.replace(name, &number.to_string()));
    let opened = client.batch_execute(&opening).await;
    opened.map_err(|error| client.error("opening the demo's shop", error).into())
}

/// Places the order that the tour follows.
pub(super) async fn place_adas_order(client: &Client) -> Result<(i64, Lsn), DemoError> {
    let placed = client.query_one(ADAS_ORDER, &[]).await;
    let placed = placed.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let (order, position) = placed.map_err(|error| client.error("placing an order", error))?;
    Ok((order, lsn(position)))
}

/// Ada, by her id.
pub(super) async fn ada(client: &Client) -> Result<i64, DemoError> {
    let found = client.query_one("SELECT id FROM public.customers WHERE city = 'London'", &[]).await;
    Ok(found.and_then(|row| row.try_get(0)).map_err(|error| client.error("looking for Ada", error))?)
}

/// Ada buys seven of what she has none of; tells where the log stood just before the commit.
pub(super) async fn buy_for_ada(client: &Client, ada: i64) -> Result<Lsn, DemoError> {
    let placed = client.query_one(ADAS_NEXT_ORDER, &[&ada]).await.and_then(|row| row.try_get(0));
    Ok(lsn(placed.map_err(|error| client.error("placing an order", error))?))
}

/// Moves an order on.
pub(super) async fn set_status(client: &Client, order: i64, status: &str) -> Result<Lsn, DemoError> {
    let changed = client.query_one(NEXT_STATUS, &[&order, &status]).await.and_then(|row| row.try_get(0));
    Ok(lsn(changed.map_err(|error| client.error("changing an order", error))?))
}

fn lsn(bytes: i64) -> Lsn {
    Lsn(bytes.unsigned_abs())
}
