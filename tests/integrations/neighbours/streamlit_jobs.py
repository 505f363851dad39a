"""A script of Streamlit, which runs it from its first line whenever something is touched."""

from __future__ import annotations

import asyncio

import streamlit
import work

number = next(work.numbers)
asyncio.run(work.square(number))
streamlit.write(number * number)
