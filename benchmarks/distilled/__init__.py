"""What does training do to a model that was distilled to four steps?"""
