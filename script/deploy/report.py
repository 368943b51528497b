"""What a check says: a line each, and a count at the end."""

import traceback


class Skip(Exception):
    """This machine cannot do it; the text says why."""


class Report:
    """Runs checks. A check yields its problems; one that yields nothing is met."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, name, problems):
        """Runs one check, given as an iterator over its problems; True if it was met."""
        found = []
        try:
            found += problems
        except Skip as why:
            self.skipped += 1
            print(f"skip  {name}: {why}", flush=True)
            return False
        except Exception as error:  # noqa: BLE001 - the other checks go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.append(f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}, {where.name})")
        if found:
            self.failed += 1
        else:
            self.passed += 1
        print(f"{'FAIL' if found else 'ok  '}  {name}", flush=True)
        for problem in found:
            print("      " + str(problem).strip().replace("\n", "\n      "), flush=True)
        return not found

    def end(self, what="deployment"):
        """Prints the count; the exit status."""
        print(f"{what}: {self.passed} ok, {self.skipped} skipped, {self.failed} failed")
        return 1 if self.failed else 0
