import unittest

from prices import shout, total


class Test(unittest.TestCase):
    def test_total(self):
        self.assertEqual(total(3, 4), 12)

    def test_shout(self):
        self.assertEqual(shout("hello"), "HELLO")
