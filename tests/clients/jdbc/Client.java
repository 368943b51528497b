import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyIn;
import org.postgresql.copy.CopyManager;
import org.postgresql.jdbc.PgStatement;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

/**
 * pgjdbc as applications use it, for tests/postgres/test_clients.py. One process serves all modes: a line of stdin is one mode, its
 * connection's properties as key=value between tabs; the answer is a line "step TAB what was seen" for each step, and a line with a dot.
 */
public final class Client {
    private static final String URL = "jdbc:postgresql://127.0.0.1:%s/%s";
    private static final int ROWS = 1000;
    private static final int BIG_CHARACTERS = 300_000;

    public static void main(String[] args) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            new Client(line).run().forEach((step, seen) -> out.println(step + "\t" + seen));
            out.println(".");
        }
    }

    private final Map<String, String> mode = new LinkedHashMap<>();
    private final Map<String, String> seen = new LinkedHashMap<>();

    private Client(String line) {
        for (String pair : line.split("\t")) {
            mode.put(pair.substring(0, pair.indexOf('=')), pair.substring(pair.indexOf('=') + 1));
        }
    }

    private Map<String, String> run() {
        // Meanwhile: a wrong password may be answered later than a right one.
        CompletableFuture<String> wrong = async(() -> open("password", "wrong").close());
        try (Connection first = open("prepareThreshold", "1"); Connection second = open("preferQueryMode", "simple")) {
            step("pid", () -> "" + (pid(first) == number(first, "select pg_backend_pid()")));
            step("simple", () -> simple(second));
            step("extended", () -> simple(first));
            step("prepared", () -> prepared(first));
            step("batch", () -> batch(first));
            step("transaction", () -> transaction(first));
            step("error", () -> error(first));
            step("cursor", () -> cursor(first));
            step("cancel", () -> cancel(first, second));
            step("timeout", () -> timeout(first));
            step("notify", () -> hear(first, second));
            step("copy", () -> copy(first));
            step("large", () -> large(first));
            step("big", () -> big(first));
            step("after", () -> number(first, "select 1") + " " + number(second, "select 2"));
        } catch (SQLException error) {
            seen.put("connect", error.getSQLState() + " " + text(error));
        }
        step("wrong", wrong::get);
        return seen;
    }

    private void step(String name, Callable<String> what) {
        try {
            seen.put(name, what.call());
        } catch (Exception error) {
            seen.put(name, text(error));
        }
    }

    private Connection open(String key, String value) throws SQLException {
        Properties properties = new Properties();
        mode.forEach(properties::setProperty);
        properties.setProperty(key, value);
        return DriverManager.getConnection(String.format(URL, mode.get("port"), "postgres"), properties);
    }

    private static String simple(Connection conn) throws SQLException {
        List<String> rows = new ArrayList<>();
        try (Statement statement = conn.createStatement()) {
            boolean more = statement.execute("select 1, 'zwei'; select null, 'größe €'");
            while (more) {
                try (ResultSet result = statement.getResultSet()) {
                    while (result.next()) {
                        rows.add(result.getString(1) + " " + result.getString(2));
                    }
                }
                more = statement.getMoreResults();
            }
        }
        return String.join(", ", rows);
    }

    private static String prepared(Connection conn) throws SQLException {
        List<String> rows = new ArrayList<>();
        try (PreparedStatement statement = conn.prepareStatement("select ? + 1, ? || '!', encode(?, 'hex')")) {
            for (int i = 1; i <= 3; i++) {
                statement.setInt(1, i);
                statement.setString(2, i == 2 ? null : "größe €");
                statement.setBytes(3, new byte[] {0, (byte) i, (byte) 255});
                try (ResultSet result = statement.executeQuery()) {
                    result.next();
                    rows.add(result.getInt(1) + " " + result.getString(2) + " " + result.getString(3));
                }
            }
        }
        return String.join(", ", rows);
    }

    private static String batch(Connection conn) throws SQLException {
        run(conn, "create temp table items (n int, t text)");
        try (PreparedStatement statement = conn.prepareStatement("insert into items values (?, ?)")) {
            for (int i = 0; i < ROWS; i++) {
                statement.setInt(1, i);
                statement.setString(2, "t" + i);
                statement.addBatch();
            }
            return IntStream.of(statement.executeBatch()).sum() + " " + number(conn, "select sum(n) from items");
        }
    }

    private static String transaction(Connection conn) throws SQLException {
        List<Long> counts = new ArrayList<>();
        run(conn, "create temp table rolled (n int)");
        conn.setAutoCommit(false);
        run(conn, "insert into rolled values (1)");
        conn.rollback();
        counts.add(number(conn, "select count(*) from rolled"));
        run(conn, "insert into rolled values (2)");
        Savepoint savepoint = conn.setSavepoint();
        run(conn, "insert into rolled values (3)");
        conn.rollback(savepoint);
        conn.commit();
        conn.setAutoCommit(true);
        counts.add(number(conn, "select sum(n) from rolled"));
        return counts.stream().map(String::valueOf).collect(Collectors.joining(" "));
    }

    private static String error(Connection conn) throws Exception {
        String alone = state(() -> number(conn, "select 1 / 0"));
        conn.setAutoCommit(false);
        String inside = state(() -> number(conn, "select * from nowhere"));
        String behind = state(() -> number(conn, "select 1"));
        conn.rollback();
        conn.setAutoCommit(true);
        return String.join(" ", alone, inside, behind, "" + number(conn, "select 1"));
    }

    /** By portals of a hundred rows. */
    private static String cursor(Connection conn) throws SQLException {
        conn.setAutoCommit(false);
        long sum = 0;
        try (Statement statement = conn.createStatement()) {
            statement.setFetchSize(100);
            try (ResultSet result = statement.executeQuery("select generate_series(1, " + ROWS + ")")) {
                while (result.next()) {
                    sum += result.getLong(1);
                }
            }
        }
        conn.commit();
        conn.setAutoCommit(true);
        return "" + sum;
    }

    /** The other connection sees the query run before it is cancelled: a cancel that is too early has nothing to hit. */
    private static String cancel(Connection conn, Connection other) throws Exception {
        try (Statement statement = conn.createStatement()) {
            CompletableFuture<String> running = async(() -> statement.execute("select pg_sleep(20)"));
            String asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and pid = " + pid(conn);
            while (!running.isDone() && number(other, asleep) == 0) {
                Thread.onSpinWait();
            }
            statement.cancel();
            return running.get() + " " + number(conn, "select 1");
        }
    }

    private static String timeout(Connection conn) throws Exception {
        try (Statement statement = conn.createStatement()) {
            statement.unwrap(PgStatement.class).setQueryTimeoutMs(50);
            return state(() -> statement.execute("select pg_sleep(20)")) + " " + number(conn, "select 1");
        }
    }

    private static String hear(Connection listener, Connection other) throws SQLException {
        run(listener, "listen pgweir_clients");
        run(other, "notify pgweir_clients, 'größe €'");
        PGNotification[] heard = listener.unwrap(PGConnection.class).getNotifications(20_000);
        run(listener, "unlisten *");
        return heard[0].getName() + " " + heard[0].getParameter() + " " + (heard[0].getPID() == pid(other)) + " " + heard.length;
    }

    /** In and out, a row that is none, and one that the client gives up. */
    private static String copy(Connection conn) throws Exception {
        CopyManager manager = conn.unwrap(PGConnection.class).getCopyAPI();
        String rows = IntStream.range(0, ROWS).mapToObj(n -> n + "\tgröße " + n + "\n").collect(Collectors.joining());
        run(conn, "create temp table copied (n int, t text)");
        long count = manager.copyIn("copy copied from stdin", new StringReader(rows));
        StringWriter back = new StringWriter();
        manager.copyOut("copy copied to stdout", back);
        String bad = state(() -> manager.copyIn("copy copied from stdin", new StringReader("no number\tx\n")));
        CopyIn given = manager.copyIn("copy copied from stdin");
        byte[] row = "1\tx\n".getBytes(StandardCharsets.UTF_8);
        given.writeToCopy(row, 0, row.length);
        given.cancelCopy();
        return count + " " + rows.equals(back.toString()) + " " + bad + " " + number(conn, "select count(*) from copied");
    }

    /** A large object, by function calls of the protocol. */
    private static String large(Connection conn) throws SQLException {
        conn.setAutoCommit(false);
        LargeObjectManager manager = conn.unwrap(PGConnection.class).getLargeObjectAPI();
        long oid = manager.createLO();
        byte[] back;
        try (LargeObject object = manager.open(oid)) {
            object.write("x".repeat(100_000).getBytes(StandardCharsets.US_ASCII));
            object.seek(0);
            back = object.read(200_000);
        }
        manager.delete(oid);
        conn.commit();
        conn.setAutoCommit(true);
        return "" + back.length;
    }

    private static String big(Connection conn) throws SQLException {
        String sent = "größe €".repeat(BIG_CHARACTERS / 7);
        try (PreparedStatement statement = conn.prepareStatement("select ?::text")) {
            statement.setString(1, sent);
            try (ResultSet result = statement.executeQuery()) {
                result.next();
                return "" + sent.equals(result.getString(1));
            }
        }
    }

    private static void run(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement()) {
            statement.execute(sql);
        }
    }

    private static long number(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement(); ResultSet result = statement.executeQuery(sql)) {
            result.next();
            return result.getLong(1);
        }
    }

    private static int pid(Connection conn) throws SQLException {
        return conn.unwrap(PGConnection.class).getBackendPID();
    }

    private interface Action {
        void run() throws Exception;
    }

    /** The SQLSTATE that it ends with. */
    private static String state(Action action) throws Exception {
        try {
            action.run();
            return "none";
        } catch (SQLException error) {
            return error.getSQLState();
        }
    }

    private static CompletableFuture<String> async(Action action) {
        return CompletableFuture.supplyAsync(() -> {
            try {
                return state(action);
            } catch (Exception error) {
                throw new CompletionException(error);
            }
        });
    }

    private static String text(Throwable error) {
        return error.toString().replace('\n', ' ').replace('\t', ' ');
    }
}
