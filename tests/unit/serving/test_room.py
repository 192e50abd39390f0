import threading

from vitconv.serving.room import Room


def test_what_does_not_fit_waits_until_there_is_room():
    room, order, begun, end = Room(10), [], threading.Event(), threading.Event()

    def large():
        with room.taken(8):
            begun.set()
            assert end.wait(30)
            order.append("large")

    def following():
        with room.taken(9):
            order.append("following")

    threads = [threading.Thread(target=large), threading.Thread(target=following)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    with room.taken(2):
        order.append("small")
    end.set()
    for thread in threads:
        thread.join()
    assert order == ["small", "large", "following"]


def test_what_is_larger_than_all_waits_for_all():
    room = Room(10)
    with room.taken(10**9):
        other = threading.Thread(target=lambda: room.taken(1).__enter__(), daemon=True)
        other.start()
        other.join(0.1)
        assert other.is_alive()
    other.join(5)
    assert not other.is_alive()
