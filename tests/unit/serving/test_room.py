import threading
import time

from vitconv.serving.room import Room


def test_what_does_not_fit_waits_until_there_is_room():
    room, order = Room(10), []

    def take(name, pixels, seconds):
        with room.taken(pixels):
            order.append(name)
            time.sleep(seconds)
            order.append(name)

    threads = [
        threading.Thread(target=take, args=("large", 8, 0.3)),
        threading.Thread(target=take, args=("next", 9, 0)),
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    take("small", 2, 0)
    for thread in threads:
        thread.join()
    assert order == ["large", "small", "small", "large", "next", "next"]


def test_what_is_larger_than_all_waits_for_all():
    room = Room(10)
    with room.taken(10**9):
        other = threading.Thread(target=lambda: room.taken(1).__enter__(), daemon=True)
        other.start()
        other.join(0.1)
        assert other.is_alive()
    other.join(5)
    assert not other.is_alive()
